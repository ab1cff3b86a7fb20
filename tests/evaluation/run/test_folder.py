"""The answers in a run's folder: which are left to ask for, and whose place a new one takes."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from evaluation.command_line import load_settings, parse_command_line
from evaluation.run.folder import RunFolder
from evaluation.run_eval import answer_with_progress
from flashrag.dataset import Question
from flashrag.episode import Failure, Trajectory
from flashrag.errors import UserError
from flashrag.prompts import choose_prompt

CONFIG = Path(__file__).resolve().parents[3] / "evaluation" / "eval_config.yaml"
QUESTIONS = [Question("a", "Who?", ("Wu",)), Question("b", "Who?", ("Wu",))]


def folder_of(tmp_path: Path, *flags: str) -> RunFolder:
    line = ["--config_path", str(CONFIG), "--method_name", "naive", "--dataset_name", "kings", "--split", "dev"]
    line += ["--save_dir", str(tmp_path), "--num_samples", "3", "--generation_params.temperature", "1", *flags]
    return RunFolder(load_settings(parse_command_line(line)), QUESTIONS)


def answer(question: str, text: str) -> Trajectory:
    return Trajectory(question, "Who?", ("Wu",), answer=text, error=None if text else Failure("SearchError", "gone"))


def left(folder: RunFolder, *, retry_failed: bool = False) -> str:
    return "".join(question.id for question in folder.pending(retry_failed))


def test_each_answer_is_asked_for_once_and_a_failed_one_again_if_wanted(tmp_path: Path):
    folder = folder_of(tmp_path)
    with folder.working():
        folder.start_session({}, "zhou", None)
        assert left(folder) == "aaabbb"
        for question, text in (("a", "Wu"), ("b", ""), ("a", ""), ("a", "Tang")):
            folder.add(answer(question, text))
        assert left(folder) == "bb"
        assert left(folder, retry_failed=True) == "abbb"
        folder.add(answer("a", "Shang"))  # in the place of the one that failed
    again = folder_of(tmp_path)
    told = [(each.question_id, each.session, each.answer, each.attempt) for each in again.trajectories()]
    assert told == [("a", 0, "Wu", 1), ("a", 1, "Shang", 2), ("a", 2, "Tang", 1), ("b", 0, "", 1)]
    assert left(again, retry_failed=True) == "bbb"


class Answers:
    """A method that answers every question with the same text."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def answer_all(self, questions: Sequence[Question], on_answered: Callable[[Trajectory], object]) -> None:
        for question in questions:
            on_answered(answer(question.id, self.text))


def test_the_bar_counts_an_answer_that_failed_before_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = folder_of(tmp_path)

    def bar(*, retry_failed: bool) -> str:
        method: Any = Answers("Wu")
        asyncio.run(answer_with_progress(folder, method, folder.pending(retry_failed), ()))
        return capsys.readouterr().err

    with folder.working():
        folder.start_session({}, "zhou", None)
        for text in ("Wu", ""):
            folder.add(answer("a", text))
        assert "6/6" in bar(retry_failed=False)  # 2 of before, and 4
        assert "6/6" in bar(retry_failed=True)  # 5, and the one that failed


def test_the_form_of_the_prompt_is_that_of_the_route(tmp_path: Path):
    for name, flags, in_chat in (("text", (), False), ("chat", ("--framework", "openai_chat"), True)):
        folder, prompt = folder_of(tmp_path, "--save_note", name, *flags), choose_prompt("with_passages")
        with folder.working():
            folder.start_session({}, "zhou", prompt)
        written = json.loads((folder.path / "environment.json").read_text())["prompt"]
        assert written == prompt.record(in_chat)._asdict()


def test_a_run_is_continued_in_the_precision_that_it_was_begun_in(tmp_path: Path):
    folder = folder_of(tmp_path)
    with folder.working():
        folder.start_session({}, "zhou", None, "bfloat16")
        folder.start_session({}, "zhou", None)  # a server that does not tell
    again = folder_of(tmp_path)
    again.check_precision("bfloat16")
    with pytest.raises(UserError, match="begun with a model in bfloat16, it would now be served in float32; give"):
        again.check_precision("float32")
