"""The soak of the checks: every mutation changes something, the same seed the same, and a bad outcome is found."""

import json
import random
import sys
import types
from pathlib import Path

import pytest

from scripts.soak import inputs
from scripts.soak.inputs import Outcome, check, problem
from scripts.soak.mutations import MUTATIONS, Case, NothingToChange, setting


def case(folder: Path) -> Case:
    folder.mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "rows.jsonl").write_text('{"id": "1", "contents": "a"}\n{"id": "2", "contents": "b"}\n')
    (folder / "serving.yaml").write_text("retrieval_method: bm25\n")
    argv = ["--config", "serving.yaml", "--rows", "rows.jsonl", "--model", "model", "--check"]
    return Case("serving", folder, argv)


def state(of: Case) -> str:
    files = {
        path.name: path.read_bytes().hex() if path.is_file() else str(path.is_dir()) for path in of.folder.rglob("*")
    }
    return json.dumps([of.argv, of.environment, sorted(files.items())])


@pytest.mark.parametrize("mutation", dict.fromkeys(MUTATIONS), ids=lambda mutation: mutation.__name__)
def test_a_mutation_changes_something_and_the_same_seed_the_same(mutation, tmp_path):
    changed = 0
    for seed in range(12):
        first, second = case(tmp_path / f"{seed}a"), case(tmp_path / f"{seed}b")
        before = state(first)
        told = [mutation(one, random.Random(seed)) for one in (first, second)]
        assert told[0] == told[1]
        assert state(first) == state(second)
        changed += state(first) != before
        assert "--check" in first.argv
    assert changed >= 8, "a value that is drawn may be the one that stands there"


def test_a_setting_of_training_is_a_key_of_its_config(tmp_path):
    of_training = Case("training", tmp_path, ["--check"])
    told = setting(of_training, random.Random(3))
    assert of_training.argv[-1] == "--check"
    assert of_training.argv[0].partition("=")[0] == told.partition("=")[0]


def test_a_case_without_files_has_nothing_to_change(tmp_path):
    with pytest.raises(NothingToChange):
        setting(Case("serving", tmp_path, ["--check"]), random.Random(0))


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome(0, 0.1, "0 errors: this would start"), None),
        (Outcome(2, 0.1, "error: no such file"), None),
        (Outcome(None, 60.0, ""), "still running after 60 s"),
        (Outcome(0, 0.1, "Traceback (most recent call last):\n  x\nKeyError: 1\n"), "a traceback: KeyError: 1"),
        (Outcome(1, 0.1, "lost"), "exit code 1: 'lost'"),
        (Outcome(-11, 0.1, ""), "exit code -11"),
        (Outcome(2, 0.1, "usage: x"), "exit code 2 without an error"),
    ],
)
def test_the_judge(outcome, words):
    told = problem(outcome)
    assert told is None if words is None else words in (told or "")


def test_a_check_runs_in_a_fork_with_its_environment_and_folder(tmp_path, monkeypatch):
    def main(argv: list[str]) -> int:
        import os

        print(argv, Path.cwd().name, os.environ["MARK"])
        if argv[0] == "raise":
            raise KeyError(argv[0])
        return 2

    module = types.ModuleType("a_command")
    module.main = main  # pyrefly: ignore[missing-attribute]
    monkeypatch.setitem(sys.modules, "a_command", module)
    monkeypatch.setitem(inputs.PROGRAMS, "serving", "a_command")
    folder = tmp_path / "case"
    folder.mkdir()
    outcome = check(Case("serving", folder, ["--x", "--check"], {"MARK": "ü"}))
    assert (outcome.code, outcome.output) == (2, "['--x', '--check'] case ü\n")
    raised = check(Case("serving", folder, ["raise"], {"MARK": ""}))
    assert raised.code == 70
    assert problem(raised) == "a traceback: KeyError: 'raise'"
