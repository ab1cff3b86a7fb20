"""One run on the real engines (Ray, FSDP2, vLLM) through whatever stops it, and on again. Minutes on two cores.

First process: an alarm saves a checkpoint, another stops the run. Second: from the checkpoint that the stop named; the
retrieval server is killed and comes back, then is killed for good. Third: the same command resumes, until its worker
is killed. All three train on the same questions in the same order.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

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
STEPS, BATCH = 12, 4
PYTHON_PATH = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PYTHON_PATH, "HF_HUB_OFFLINE": "1"}
PLACES = ["Oakdale", "Wildford", "Marwick", "Elmstead", "Thornby", "Ashcombe", "Dunmere", "Fernhill", "Holt", "Ryde"]
# A step without a search has none below 0, so that both rules are breached from the first step.
ALARMS = (
    "+alarms.saves={metric: rollout/searches, above: -1, action: save}",
    "+alarms.stops={metric: rollout/searches, above: -1, action: stop, patience: 3}",
)


def run(*arguments: object) -> None:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def make_data(folder: Path) -> None:
    """A question for each place in the batches of the run, over ten passages."""
    corpus = [{"id": str(i), "contents": f'"Person {i}"\nPerson {i} was born in {p}.'} for i, p in enumerate(PLACES)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in corpus), encoding="utf-8")
    questions = [
        {"_id": f"q{i}", "question": f"Where was Person {i} born?", "answer": PLACES[i % 10]}
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


def training_command(folder: Path, port: int, *more: str) -> list[str]:
    arguments = [
        *("--config_name", "cpu", "--actor_model_path", BASE_MODEL, "--search_url", f"http://{LOOPBACK}:{port}"),
        *("--train_data_path", folder / "data" / "train.parquet", "--dev_data_path", folder / "data" / "test.parquet"),
        *("--save_path", folder / "run", "--train_batch_size", BATCH, "--ppo_mini_batch_size", BATCH),
        *("--rollout_n", 4, "--max_prompt_length", 300, "--max_response_length", 500, "--save_freq", 100),
        *("--test_freq", -1, "--total_epochs", 1, "trainer.val_before_train=false", "data.dataloader_num_workers=0"),
        *("search.top_n=2", "search.max_result_tokens=200", "search.max_searches=3", "search.max_attempts=3"),
        *("search.max_outage_s=60", "search.seed=7", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192", *more),
    ]
    return [sys.executable, "-m", "training.launch", *map(str, arguments)]


@contextmanager
def training(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    try:
        yield process
    finally:
        process.terminate()  # nothing that has ended minds
        process.wait()


def read_until_step(stream: IO[str] | None, step: int) -> str:
    """The console of a run up to the line of a step."""
    assert stream is not None
    seen = ""
    for line in stream:
        seen += line
        if line.strip().startswith((f"{step}/", f"{step} |")):
            return seen
    raise AssertionError(f"the run ended before step {step}: {seen}")


def agent_loop_workers(trainer: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray names the process of an actor after its class."""
    processes = psutil.Process(trainer.pid).children(recursive=True)
    return [process for process in processes if "ray::AgentLoopWorker" in " ".join(process.cmdline()[:1])]


def questions_by_step(folder: Path) -> dict[int, set[str]]:
    """The ids of the questions that each step asked, in whichever process."""
    asked: dict[int, set[str]] = {}
    for record in read_trajectories(folder / "run" / "trajectories", "train"):
        assert record["ended_by"] != "search_failed"
        asked.setdefault(record["step"], set()).add(record["question_id"])
    return asked


@pytest.mark.timeout(2400)
def test_alarms_an_outage_and_a_dead_worker_stop_a_run_that_loses_nothing(tmp_path: Path) -> None:
    make_data(tmp_path)
    port = free_port()
    best = an_alarm_saves_and_an_alarm_stops(tmp_path, port)
    trained = the_server_comes_back_and_then_stays_away(tmp_path, port, best)
    the_run_goes_on_until_its_worker_is_killed(tmp_path, port, trained)

    metrics = dict(read_metrics(tmp_path / "run" / "metrics"))
    assert all(step["rollout/search_failed_share"] == 0.0 for step in metrics.values())
    assert all(step["rollout/searches"] > 0.0 for step in metrics.values())


def an_alarm_saves_and_an_alarm_stops(folder: Path, port: int) -> Path:
    with served(folder, port):
        command = training_command(folder, port, *ALARMS, "trainer.val_before_train=false", "trainer.test_freq=1")
        stopped = subprocess.run(command, capture_output=True, text=True, timeout=900, env=ENVIRONMENT, check=False)
    console = stopped.stdout + stopped.stderr
    assert stopped.returncode == EXIT_STOPPED, console[-4000:]
    assert re.search(r"alarm saves: rollout/searches is [\d.]+, above -1 \[step 1\]: save", console)
    assert re.search(r"error: alarm stops: rollout/searches is [\d.]+, above -1, for 3 steps \[step 3\]", console)
    best = folder / "run" / "best_checkpoint" / "global_step_2"
    assert f"trainer.resume_mode=resume_path trainer.resume_from_path={best}" in console

    # The alarm of step 1 had step 2 saved, the only checkpoint; the alarm of step 3 was logged before it stopped.
    metrics = dict(read_metrics(folder / "run" / "metrics"))
    assert sorted(metrics) == [1, 2, 3]
    assert [metrics[step]["alarm/stops"] for step in (1, 2, 3)] == [0.0, 0.0, 1.0]
    assert [path.name for path in (folder / "run").glob("global_step_*")] == ["global_step_2"]
    assert list(best.glob("actor/*.pt"))
    for name in ("zero_variance_share", "think_repeat_rate", "format_rate", "response_tokens_sampled"):
        assert metrics[1][f"rollout/{name}"] >= 0.0
    for name in ("actor/entropy", "actor/kl_loss", "actor/grad_norm", "critic/score/mean"):
        assert name in metrics[1]
    return best


def the_server_comes_back_and_then_stays_away(folder: Path, port: int, best: Path) -> int:
    """The second process, from step 2; returns the last step that it trained."""
    questions_before = questions_by_step(folder)[3]
    named = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path='{best}'")
    with served(folder, port) as server, training(training_command(folder, port, *named)) as stopped:
        console = read_until_step(stopped.stdout, 3)
        kill(server)
        time.sleep(20.0)
        with served(folder, port) as again:
            console += read_until_step(stopped.stdout, 5)
            kill(again)
        console += stopped.communicate()[0]
    assert stopped.returncode == EXIT_STOPPED, console
    assert "searches wait" in console
    assert "is healthy again" in console
    assert "no retrieval server was healthy for 60 s (search.max_outage_s)" in console
    trained = max(step for step, _ in read_metrics(folder / "run" / "metrics"))
    assert 5 <= trained < STEPS
    assert f"The checkpoint of step {trained} is in {folder / 'run'}" in console
    assert f"To go on: {sys.executable} -m training.launch --config_name cpu" in console
    # Both processes asked the same in step 3, and no question came twice.
    asked = questions_by_step(folder)
    assert asked[3] == questions_before
    assert_each_once(asked, trained)
    assert_repeated(folder, step=3)
    return trained


def assert_repeated(folder: Path, step: int) -> None:
    """Two processes sampled the same in a step: from the same weights, with the same seeds.

    The one source of difference is rounding: what shares a batch with an episode changes the last bits of its
    probabilities, and a token that was about to be another one is.
    """
    records = sorted(read_trajectories(folder / "run" / "trajectories", "train", step), key=itemgetter("written_at"))
    half = len(records) // 2
    first, again = ({sampled_by(r): sampled_ids(r) for r in part} for part in (records[:half], records[half:]))
    assert len(first) == half == BATCH * 4
    same = sum(first[name] == again[name] for name in first)
    assert same >= 0.75 * half, f"{same} of {half} episodes were sampled as before"
    one, other = (metrics for number, metrics in read_metrics(folder / "run" / "metrics") if number == step)
    for name in ("critic/score/mean", "rollout/searches", "rollout/em", "actor/entropy", "actor/grad_norm"):
        assert other[name] == pytest.approx(one[name], rel=1e-3 + (1 - same / half), abs=1e-3), name


def sampled_by(record: dict[str, Any]) -> tuple[str, int]:
    return record["question_id"], record["session"]


def sampled_ids(record: dict[str, Any]) -> list[int]:
    return [token for segment in record["segments"] for token in segment["token_ids"]]


def the_run_goes_on_until_its_worker_is_killed(folder: Path, port: int, trained: int) -> None:
    """The third process, from where the second stopped."""
    with served(folder, port), training(training_command(folder, port)) as stopped:
        console = read_until_step(stopped.stdout, trained + 1)
        (worker,) = agent_loop_workers(stopped)
        worker.kill()
        console += stopped.communicate()[0]
    assert stopped.returncode == EXIT_STOPPED, console
    assert re.search(r"error: a process of the run died: .*AgentLoopWorker", console), console
    last = max(step for step, _ in read_metrics(folder / "run" / "metrics"))
    assert f"The checkpoint of step {last} is in {folder / 'run'}" in console
    # The step that the outage cut short was given the same questions again.
    assert_each_once(questions_by_step(folder), last)


def assert_each_once(asked: dict[int, set[str]], last: int) -> None:
    steps = range(1, last + 1)
    assert [len(asked[step]) for step in steps] == [BATCH] * last
    assert len(set().union(*(asked[step] for step in steps))) == last * BATCH
