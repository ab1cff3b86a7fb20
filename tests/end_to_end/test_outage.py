"""The retrieval server is killed under a real run: it comes back and the run goes on, it stays away and the run stops
with a checkpoint, and the same command resumes where it stopped. Ray, FSDP2, vLLM; minutes on two cores."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest
import yaml

from flashrag.local_server import LOOPBACK, free_port, serving
from training.progress import read_metrics
from verl_search.stopping import EXIT_STOPPED
from verl_search.trajectory_files import read_trajectories

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
BASE_MODEL = REPOSITORY / "training" / "demo" / "base_model"
STEPS, BATCH = 6, 4
PYTHON_PATH = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PYTHON_PATH, "HF_HUB_OFFLINE": "1"}


def run(*arguments: object) -> None:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def make_data(folder: Path) -> None:
    """A question for each place in the batches of the run, over ten passages."""
    places = [
        "Oakdale",
        "Wildford",
        "Marwick",
        "Elmstead",
        "Thornby",
        "Ashcombe",
        "Dunmere",
        "Fernhill",
        "Holt",
        "Ryde",
    ]
    corpus = [{"id": str(i), "contents": f'"Person {i}"\nPerson {i} was born in {p}.'} for i, p in enumerate(places)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in corpus), encoding="utf-8")
    questions = [
        {"_id": f"q{i}", "question": f"Where was Person {i} born?", "answer": places[i % 10]}
        for i in range(STEPS * BATCH)
    ]
    (folder / "hotpot.json").write_text(json.dumps(questions), encoding="utf-8")
    run(
        *(REPOSITORY / "training" / "data_preprocess_hpqa.py", "--train_data_path", folder / "hotpot.json"),
        *("--dev_data_path", folder / "hotpot.json", "--output_dir", folder / "data"),
    )
    run(
        *("-m", "flashrag.retriever.index_builder", "--retrieval_method", "bm25"),
        *("--corpus_path", folder / "corpus.jsonl", "--save_dir", folder / "index"),
    )
    config = {
        "retrieval_method": "bm25",
        "index_path": str(folder / "index" / "bm25"),
        "corpus_path": str(folder / "corpus.jsonl"),
    }
    (folder / "serving.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


@contextmanager
def served(folder: Path, port: int) -> Iterator[subprocess.Popen]:
    script = REPOSITORY / "rag_serving" / "serving.py"
    command = [sys.executable, str(script), "--config", str(folder / "serving.yaml"), "--num_retriever", "1"]
    with serving([*command, "--port", str(port)], f"http://{LOOPBACK}:{port}", folder / "server.log") as process:
        yield process


def kill(server: subprocess.Popen) -> None:
    for process in [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]:
        process.kill()
    server.wait()


def training_command(folder: Path, port: int) -> list[str]:
    arguments = [
        *("--config_name", "cpu", "--actor_model_path", BASE_MODEL, "--search_url", f"http://{LOOPBACK}:{port}"),
        *("--train_data_path", folder / "data" / "train.parquet", "--dev_data_path", folder / "data" / "test.parquet"),
        *("--save_path", folder / "run", "--train_batch_size", BATCH, "--ppo_mini_batch_size", BATCH),
        *("--rollout_n", 4, "--max_prompt_length", 300, "--max_response_length", 500, "--save_freq", 100),
        *("--test_freq", -1, "--total_epochs", 1, "trainer.val_before_train=false", "data.dataloader_num_workers=0"),
        *("search.top_n=2", "search.max_result_tokens=200", "search.max_searches=3", "search.max_attempts=3"),
        *("search.max_outage_s=60", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192"),
    ]
    return [sys.executable, "-m", "training.launch", *map(str, arguments)]


def read_until_step(stream: IO[str], step: int) -> str:
    """The console of a run up to the line of a step."""
    seen = ""
    for line in stream:
        seen += line
        if line.strip().startswith(f"{step}/") or line.strip().startswith(f"{step} |"):
            return seen
    raise AssertionError(f"the run ended before step {step}: {seen}")


@pytest.mark.timeout(1800)
def test_the_server_dies_comes_back_and_dies_for_good(tmp_path: Path) -> None:
    make_data(tmp_path)
    port = free_port()
    command = training_command(tmp_path, port)
    with served(tmp_path, port) as server:
        stopped = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        assert stopped.stdout is not None
        try:
            console = read_until_step(stopped.stdout, 1)
            kill(server)
            time.sleep(20.0)
            with served(tmp_path, port) as again:
                console += read_until_step(stopped.stdout, 3)
                kill(again)
            console += stopped.communicate()[0]
        finally:
            stopped.terminate()  # nothing that has ended minds
            stopped.wait()
    assert stopped.returncode == EXIT_STOPPED, console
    assert "searches wait" in console
    assert "is healthy again" in console
    assert "no retrieval server was healthy for 60 s (search.max_outage_s)" in console
    trained = max(step for step, _ in read_metrics(tmp_path / "run" / "metrics"))
    assert 3 <= trained < STEPS
    assert f"The checkpoint of step {trained} is in {tmp_path / 'run'}" in console
    assert f"To go on: {sys.executable} -m training.launch --config_name cpu" in console

    with served(tmp_path, port):
        subprocess.run(command, env=ENVIRONMENT, check=True, timeout=900)
    metrics = dict(read_metrics(tmp_path / "run" / "metrics"))
    assert sorted(metrics) == list(range(1, STEPS + 1))
    assert all(step["rollout/search_failed_share"] == 0.0 for step in metrics.values())
    assert all(step["rollout/searches"] > 0.0 for step in metrics.values())
    # The step that was stopped on its way was given the same questions again, and no question came twice.
    questions_by_step: dict[int, set[str]] = {}
    for record in read_trajectories(tmp_path / "run" / "trajectories", "train"):
        assert record["ended_by"] != "search_failed"
        questions_by_step.setdefault(record["step"], set()).add(record["question_id"])
    assert [len(questions_by_step[step]) for step in sorted(questions_by_step)] == [BATCH] * STEPS
    assert len(set().union(*questions_by_step.values())) == STEPS * BATCH
