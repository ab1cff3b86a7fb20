"""README's first command, the embedded demo, with two training steps instead of twenty: minutes on two cores."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.docs.clone import copy_repository
from tests.docs.pages import printed
from tests.runs import training

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
PYTHON_PATH = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PYTHON_PATH}


def demo_command(folder: Path) -> list[str]:
    printed_words = shlex.split(printed("README.md", "bash training/run.sh").text)
    return [*printed_words, "--demo", "--output_dir", str(folder), "--steps", "2"]


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.timeout(1500)
def test_the_demo_is_interrupted_resumes_and_reports(tmp_path: Path) -> None:
    folder, clone = tmp_path / "demo", tmp_path / "clone"
    copy_repository(clone)
    with training(demo_command(folder), clone, folder / "training", ENVIRONMENT) as interrupted:
        interrupted.wait_for_line("== evaluate_base")  # the retrieval server runs, a model server is starting
        time.sleep(5)
        children = psutil.Process(interrupted.process.pid).children(recursive=True)
        assert len(children) >= 2
        interrupted.process.send_signal(signal.SIGINT)
        assert interrupted.process.wait(timeout=60) == 130
    assert [child for child in children if is_alive(child)] == []

    done = subprocess.run(demo_command(folder), env=ENVIRONMENT, cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "world: done before" in done.stdout
    assert "Question:" in done.stdout

    report = json.loads((folder / "report.json").read_text())
    for figure in ("em_base", "em_trained", "searches_base", "searches_trained", "n_questions"):
        assert report[figure] >= 0
        assert report[f"{figure}_1hop"] >= 0
    assert report["n_questions"] >= 100
    assert report["n_questions_1hop"] >= 100
    assert set(report["seconds"]) == {"world", "index", "evaluate_base", "train", "evaluate_trained", "page"}
    exactness = report["token_exactness"]
    assert exactness["violations"] == 0
    assert exactness["trajectories_checked"] == 2 * 8 * 8 + 2 * (report["n_questions"] + report["n_questions_1hop"])
    assert exactness["probability_difference_max"] < 1e-2
    assert exactness["probability_difference_mean"] < 1e-3
    # One truth: the evaluation of the checkpoint and the trainer's last validation agree on every question.
    same = report["same_answers_as_trainer"]
    assert same["questions"] == same["same_em"] == report["n_questions"] + report["n_questions_1hop"]
    assert (folder / "curves.png").stat().st_size > 10_000
    assert (folder / "page" / "report.html").stat().st_size > 100_000

    again = subprocess.run(demo_command(folder), env=ENVIRONMENT, cwd=clone, capture_output=True, text=True, check=True)
    assert "start afresh" in again.stdout
