"""One run on the real engines (Ray, FSDP2, vLLM) through whatever stops it, and on again. Minutes on two cores.

First process: an alarm saves a checkpoint, another stops the run. Second: from the checkpoint that the stop named; the
retrieval server is killed and comes back, then is killed for good. Third: the same command resumes, until its trainer
is killed in mid-step. Fourth: it trains the lost steps again, until its agent-loop worker is killed. Fifth: until its
rollout replica is. All train on the same questions in the same order. Where HotpotQA and Wikipedia are at hand, which
are not part of the repository, a quarter of the questions and most of the passages are real.
"""

import json
import lzma
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flashrag.episode import Trajectory
from flashrag.system.local_server import LOOPBACK, free_port, serving
from tests import runs
from tests.runs import Run
from verl_search.rollout.trajectories import read_trajectories
from verl_search.trainer.run_folder import read_metrics
from verl_search.trainer.stopping import EXIT_STOPPED

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
BASE_MODEL = REPOSITORY / "training" / "demo" / "base_model"
STEPS, BATCH, GROUP = 16, 4, 4
PYTHON_PATH = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PYTHON_PATH, "HF_HUB_OFFLINE": "1"}
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
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


def real_questions(name: str, count: int) -> list[dict[str, Any]]:
    """The shortest of one of HotpotQA's files, as it holds them: all of these fit the prompt's length."""
    if not SHARED_DATA.is_dir():
        return []
    questions = json.loads(lzma.decompress((SHARED_DATA / "original" / f"{name}.json.xz").read_bytes()))
    return sorted(questions, key=lambda question: len(question["question"]))[:count]


def real_passages() -> list[dict[str, str]]:
    if not SHARED_DATA.is_dir():
        return []
    with lzma.open(SHARED_DATA / "corpus" / "wiki_passages.jsonl.xz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for _, line in zip(range(400), lines, strict=False)]


def make_data(folder: Path) -> None:
    """A question for each place in the batches of the run, some to validate on, and the passages."""
    corpus = [{"id": f"p{i}", "contents": f'"Person {i}"\nPerson {i} was born in {p}.'} for i, p in enumerate(PLACES)]
    corpus += real_passages()
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in corpus), encoding="utf-8")
    questions = real_questions("hotpot_train_v1.1.sample100", STEPS * BATCH // 4)
    questions += [
        {"_id": f"q{i}", "question": f"Where was Person {i} born?", "answer": PLACES[i % 10]}
        for i in range(STEPS * BATCH - len(questions))
    ]
    (folder / "train.json").write_text(json.dumps(questions), encoding="utf-8")
    dev = real_questions("hotpot_dev_distractor_v1.sample", 8) or questions[:8]
    (folder / "dev.json").write_text(json.dumps(dev), encoding="utf-8")
    run(
        *(REPOSITORY / "training" / "data_preprocess_hpqa.py", "--train_data_path", folder / "train.json"),
        *("--dev_data_path", folder / "dev.json", "--output_dir", folder / "data"),
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
        "actor_rollout_ref.rollout.dtype=float32",  # the same figures on every processor
        *("--train_data_path", folder / "data" / "train.parquet", "--dev_data_path", folder / "data" / "test.parquet"),
        *("--save_path", folder / "run", "--train_batch_size", BATCH, "--ppo_mini_batch_size", BATCH),
        *("--rollout_n", GROUP, "--max_prompt_length", 300, "--max_response_length", 500, "--save_freq", 100),
        *("--test_freq", -1, "--total_epochs", 1, "trainer.val_before_train=false", "data.dataloader_num_workers=0"),
        *("search.top_n=2", "search.max_result_tokens=200", "search.max_searches=3", "search.max_attempts=3"),
        *("search.max_outage_s=45", "search.seed=7", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192", *more),
    ]
    return [sys.executable, "-m", "training.launch", *map(str, arguments)]


def training(folder: Path, port: int, *more: str) -> AbstractContextManager[Run]:
    return runs.training(training_command(folder, port, *more), folder, folder / "run", ENVIRONMENT)


def questions_by_step(folder: Path) -> dict[int, set[str]]:
    """The ids of the questions that each step asked, in whichever process."""
    asked: dict[int, set[str]] = {}
    for trajectory in read_trajectories(folder / "run" / "trajectories", "train"):
        assert trajectory.end_reason != "search_failed"
        asked.setdefault(trajectory.step, set()).add(trajectory.question_id)
    return asked


@pytest.mark.timeout(2400)
def test_alarms_outages_and_dead_processes_stop_a_run_that_loses_nothing(tmp_path: Path) -> None:
    make_data(tmp_path)
    port = free_port()
    best = an_alarm_saves_and_an_alarm_stops(tmp_path, port)
    trained = the_server_comes_back_and_then_stays_away(tmp_path, port, best)
    with served(tmp_path, port):
        the_trainer_is_killed(tmp_path, port, trained + 2)
        last = its_steps_are_trained_again_and_the_worker_is_killed(tmp_path, port, trained + 2)
        the_replica_is_killed(tmp_path, port, last + 1)

    metrics = dict(read_metrics(tmp_path / "run" / "metrics"))
    assert all(step["rollout/search_failed_share"] == 0.0 for step in metrics.values())
    assert all(step["rollout/searches"] > 0.0 for step in metrics.values())
    for step in metrics.values():
        assert all(math.isfinite(value) for value in step.values() if isinstance(value, int | float))
        # In float32 the rollout engine and the actor agree on the probability of every sampled token.
        assert step["training/rollout_probs_diff_max"] < 1e-3
        assert step["training/rollout_probs_diff_mean"] < 1e-5
    titles = {passage["contents"].split("\n")[0] for passage in real_passages()}
    assert not titles or any(title in text for text in spliced_texts(tmp_path) for title in titles)


def spliced_texts(folder: Path) -> Iterator[str]:
    for trajectory in read_trajectories(folder / "run" / "trajectories", "train"):
        yield from (segment.text for segment in trajectory.segments if segment.source == "result")


def an_alarm_saves_and_an_alarm_stops(folder: Path, port: int) -> Path:
    more = (*ALARMS, "trainer.val_before_train=false", "trainer.test_freq=1")
    with served(folder, port), training(folder, port, *more) as stopped:
        console = stopped.wait(900)
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
    with served(folder, port) as server, training(folder, port, *named) as stopped:
        stopped.wait_for_step(3)
        kill(server)
        time.sleep(10.0)  # and as long again until another one is ready
        with served(folder, port) as again:
            stopped.wait_for_step(5)
            kill(again)
        console = stopped.wait()
    assert stopped.returncode == EXIT_STOPPED, console
    assert "searches wait" in console
    assert "is healthy again" in console
    assert "no retrieval server was healthy for 45 s (search.max_outage_s)" in console
    assert f"To go on: {sys.executable} -m training.launch --config_name cpu" in console
    trained = assert_saved(folder, console)
    assert trained >= 5
    assert questions_by_step(folder)[3] == questions_before
    assert_repeated(folder, step=3)
    return trained


def assert_repeated(folder: Path, step: int) -> None:
    """The last two processes that trained a step sampled the same in it: from the same weights, with the same seeds.

    The one source of difference is rounding: what shares a batch with an episode changes the last bits of its
    probabilities, and a token that was about to be another one is.
    """
    kept = sorted(read_trajectories(folder / "run" / "trajectories", "train", step), key=attrgetter("written_at"))
    count = BATCH * GROUP
    parts = kept[-2 * count : -count], kept[-count:]
    first, again = ({sampled_by(one): sampled_ids(one) for one in part} for part in parts)
    assert first.keys() == again.keys()
    assert len(first) == count
    same = sum(first[name] == again[name] for name in first)
    assert same >= 0.75 * count, f"{same} of {count} episodes of step {step} were sampled as before"
    one, other = (metrics for number, metrics in read_metrics(folder / "run" / "metrics") if number == step)
    for name in ("critic/score/mean", "rollout/searches", "rollout/em", "actor/entropy", "actor/grad_norm"):
        assert other[name] == pytest.approx(one[name], rel=1e-3 + (1 - same / count), abs=1e-3), name


def sampled_by(trajectory: Trajectory) -> tuple[str, int | None]:
    return trajectory.question_id, trajectory.session


def sampled_ids(trajectory: Trajectory) -> list[int]:
    return [token for segment in trajectory.segments for token in segment.token_ids]


def the_trainer_is_killed(folder: Path, port: int, last: int) -> None:
    """The third process, from where the second stopped; what it trains after that is in no checkpoint."""
    with training(folder, port) as killed:
        killed.wait_for_step(last)
        killed.kill_process("ray::SearchTaskRunner")
        console = killed.wait()
    assert killed.returncode == 1, console
    assert "the trainer's process died: " in console
    assert f" is in {folder / 'run'}: the same command resumes from it." in console


def its_steps_are_trained_again_and_the_worker_is_killed(folder: Path, port: int, lost: int) -> int:
    """The fourth process, which begins two steps before `lost`; returns the last step that it trained."""
    with training(folder, port) as stopped:
        stopped.wait_for_step(lost)
        stopped.kill_process("ray::AgentLoopWorker")
        console = stopped.wait()
    assert stopped.returncode == EXIT_STOPPED, console
    assert re.search(r"error: a process of the run died: .*AgentLoopWorker", console), console
    last = assert_saved(folder, console)
    assert last >= lost
    for step in (lost - 1, lost):
        assert_repeated(folder, step)
    return last


def the_replica_is_killed(folder: Path, port: int, until: int) -> None:
    """The fifth process."""
    with training(folder, port) as stopped:
        stopped.wait_for_step(until)
        stopped.kill_process("VLLM::EngineCore")
        console = stopped.wait()
    assert stopped.returncode == EXIT_STOPPED, console
    assert "error: a rollout replica failed: " in console  # its requests do, or it is found dead
    assert assert_saved(folder, console) >= until


def assert_saved(folder: Path, console: str) -> int:
    """The stop saved the last step that was logged; returns it. No question was asked in two steps."""
    *_, (last, _) = read_metrics(folder / "run" / "metrics")
    assert f"The checkpoint of step {last} is in {folder / 'run'}" in console, console
    # Each step that was cut short was given the same questions again.
    asked = questions_by_step(folder)
    assert [len(asked[step]) for step in range(1, last + 1)] == [BATCH] * last
    assert len(set().union(*(asked[step] for step in range(1, last + 1)))) == last * BATCH
    return last
