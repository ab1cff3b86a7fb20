"""The answers in a run's folder: which are left to ask for, and whose place a new one takes."""

from pathlib import Path

from evaluation.command_line import load_settings, parse_command_line
from evaluation.run.folder import RunFolder
from flashrag.dataset import Question
from flashrag.episode import Failure, Trajectory

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
