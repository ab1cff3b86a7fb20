"""The command of the warm start: what it refuses, what `--check` shows, how its folder is kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Response

from flashrag.preflight import examine
from flashrag.system.machine import Gpu
from tests.verl_search.composing import composed
from training.warm_start.preflight import RULES, Options, WarmStartFacts, folder_was_begun_so
from training.warm_start.progress import step_line
from training.warm_start.run import main, trainer_settings
from verl_search.preflight.hardware import DEVICE_RULES, Tools

BASE_MODEL = Path(__file__).parents[3] / "training" / "demo" / "base_model"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [{"id": f"q{i}", "question": f"Question {i}?", "golden_answers": ["Wu"]} for i in range(10)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def search_url(serve: Callable[[Any], str]) -> str:
    app = FastAPI()
    app.get("/health")(lambda: {"status": "ready"})
    app.post("/search")(lambda: [[], []])
    return serve(app)


def command(folder: Path, *more: object) -> list[str]:
    return list(map(str, ["--actor_model_path", BASE_MODEL, "--save_path", folder / "out", *more]))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def cpu_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is the CPU's, whichever the tests run in."""
    for module in ("training.warm_start.run", "verl_search.preflight.hardware"):
        monkeypatch.setattr(f"{module}.torch_cuda", lambda: None)


def test_the_gpu_stack_needs_a_gpu_its_driver_and_a_compiler() -> None:
    facts = WarmStartFacts(Options(actor_model_path=Path("m"), save_path=Path("s")), composed("warm_start"), "", [])
    old = Gpu(80 * 2**30, 79 * 2**30, "570.1")
    for gpus, tools, rules in (
        ([], Tools(True, True, True), ["warm_start.gpus"]),
        ([old], Tools(False, True, True), ["machine.driver", "machine.compiler"]),
        ([old._replace(driver="580.1")], Tools(True, True, True), []),
    ):
        facts.__dict__["_gathered"] = {"gpus": gpus, "tools": tools, "torch_cuda": "13.0"}
        hardware = {name: rule for name, rule in RULES.items() if name == "warm_start.gpus" or name in DEVICE_RULES}
        assert [finding.rule for finding in examine(hardware, facts)] == rules


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], closed_url: str) -> None:
    arguments = command(tmp_path, "--train_data_path", tmp_path / "none.jsonl", "--search_url", closed_url)
    errors = refused(capsys, *arguments)
    assert "none.jsonl" in errors
    assert closed_url in errors
    assert not (tmp_path / "out").exists()


def test_exactly_one_source_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], questions: Path, search_url: str
) -> None:
    expected = "give either --train_data_path with --search_url (rules), or --trajectories"
    assert expected in refused(capsys, *command(tmp_path))
    both = ("--train_data_path", questions, "--search_url", search_url, "--trajectories", tmp_path)
    assert expected in refused(capsys, *command(tmp_path, *both))
    errors = refused(capsys, *command(tmp_path, "--train_data_path", questions))
    assert "give the retrieval server (--search_url)" in errors


def test_a_folder_without_trajectories_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = refused(capsys, *command(tmp_path, "--trajectories", tmp_path))
    assert f"--trajectories {tmp_path}: none of them is good" in errors


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("data.train_batch_size=0", "a whole number from 1 on"),
        ("trainer.total_epochs=0", "a whole number from 1 on"),
        ("data.max_token_len_per_gpu=1.5", "a whole number from 1 on"),
        ("optim.lr=-1", "a number above 0"),
        ("optim.lr_warmup_steps_ratio=2", "a share of the steps, from 0 to 1"),
    ],
)
def test_numbers_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], questions: Path, search_url: str, setting: str, expected: str
) -> None:
    source = ("--train_data_path", questions, "--search_url", search_url, "data.train_batch_size=4", setting)
    assert f"{setting}: expected {expected} [warm_start.numbers]" in refused(capsys, *command(tmp_path, *source))


def test_a_server_of_another_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], questions: Path, serve: Callable[[Any], str]
) -> None:
    model_server = FastAPI()
    model_server.get("/health")(lambda: Response())
    source = ("--train_data_path", questions, "--search_url", serve(model_server), "data.train_batch_size=4")
    errors = refused(capsys, *command(tmp_path, *source))
    assert "was refused" in errors and "give the address of a ReSearch retrieval server [warm_start.server]" in errors


def test_too_few_questions_for_a_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], questions: Path, search_url: str
) -> None:
    source = ("--train_data_path", questions, "--search_url", search_url)
    errors = refused(capsys, *command(tmp_path, *source, "data.train_batch_size=16"))
    assert "data.train_batch_size=16, but at most 10 transcripts can be made" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.train_files=x.jsonl"], "data.train_files is set by the command itself; give --train_data_path or"),
        (["trainer.default_local_dir=/x"], "trainer.default_local_dir is set by the command itself; give --save_path"),
        (
            ["data.truncation=right"],
            "data.truncation has no effect: the ids of a transcript are trained on as they are",
        ),
        (["data.max_length=9"], "data.max_length has no effect"),
        (["trainer.logger=[console]"], "trainer.logger: the progress on the console is read from the file logger"),
        (["--each", "2"], "--each=2 has no effect without --trajectories; leave it out"),
    ],
)
def test_what_would_not_be_honoured_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    questions: Path,
    search_url: str,
    arguments: list[str],
    message: str,
) -> None:
    source = ("--train_data_path", questions, "--search_url", search_url, "data.train_batch_size=4")
    assert message in refused(capsys, *command(tmp_path, *source, *arguments))


def test_flags_of_the_rules_are_refused_for_trajectories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "has no effect without --train_data_path"
    assert told not in refused(capsys, *command(tmp_path, "--trajectories", tmp_path))
    errors = refused(capsys, *command(tmp_path, "--trajectories", tmp_path, "--top_n", "3", "--direct_share", "0"))
    assert "--top_n=3 has no effect without --train_data_path" in errors
    assert "--direct_share=0.0 has no effect without --train_data_path" in errors


def test_the_search_server_is_not_asked_once_the_transcripts_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], questions: Path, closed_url: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.jsonl").touch()
    source = ("--train_data_path", questions, "--search_url", closed_url, "data.train_batch_size=4")
    assert main([*command(tmp_path, *source, "--check")]) == 0
    assert closed_url not in capsys.readouterr().out.partition("findings")[2]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optim.lrr=1", "optim.lr"),
        ("--tpo_n=3", "did you mean '--top_n'?"),
        ("lr", "unknown argument 'lr'"),
        (
            "--prompt_template_name=qa_python_template",
            "invalid choice: 'qa_python_template' (choose from 'qa_template', 'search_r1')",
        ),
    ],
)
def test_a_mistaken_argument_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    errors = refused(capsys, *command(tmp_path), argument)
    assert message in errors
    assert errors.count("\n") == 1


def test_check_shows_the_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], questions: Path, search_url: str
) -> None:
    source = ("--train_data_path", questions, "--search_url", search_url)
    assert main([*command(tmp_path, *source, "--check"), "data.train_batch_size=4"]) == 0
    shown = capsys.readouterr().out
    assert f"{questions}: 10 questions of 10 records" in shown
    assert "1154816 parameters" in shown
    assert "0 errors: this would start" in shown
    assert not (tmp_path / "out").exists()


def test_a_folder_goes_on_with_its_own_settings_only(tmp_path: Path) -> None:
    options = Options(actor_model_path=Path("m"), save_path=tmp_path, count=5, search_url="http://127.0.0.1:1")
    facts = WarmStartFacts(options, composed("warm_start"), "warm_start", ["optim.lr=1"])
    rule = {"begun": folder_was_begun_so}
    assert examine(rule, facts) == []
    (tmp_path / "settings.json").write_text(json.dumps(facts.kept_settings))

    def told(**changed: Any) -> list[str]:
        again = WarmStartFacts(replace(options, **changed), facts.config, "warm_start", ["optim.lr=1"])
        return [finding.message for finding in examine(rule, again)]

    assert told(search_url="http://127.0.0.1:2", check=True) == []
    assert told(count=6) == [
        f"{tmp_path} was begun with count=5, and 6 was given; give another --save_path, or remove that folder"
    ]
    (tmp_path / "settings.json").write_text("{")
    assert "settings.json cannot be read" in told()[0]


def test_nothing_is_measured_where_no_transcript_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").touch()
    paths = [
        "model.path='m'",
        f"data.train_files='{tmp_path}/train.jsonl'",
        f"trainer.default_local_dir='{tmp_path}/checkpoints'",
    ]
    assert trainer_settings(Path("m"), tmp_path) == [*paths, "trainer.test_freq=-1"]
    (tmp_path / "dev.jsonl").write_text("{}\n")
    assert trainer_settings(Path("m"), tmp_path) == [*paths, f"data.val_files='{tmp_path}/dev.jsonl'"]


def test_a_step_and_a_measurement_in_a_line() -> None:
    step = {"train/loss": 1.5, "train/lr": 2e-5, "train/global_tokens": 4300}
    assert step_line(7, step, 12.34) == "    7 | 1.5000 |               |       2.0e-05 |   4300 |    12.3"
    assert step_line(7, {"val/loss": 1.25}, 0.0) == "    7 |        |        1.2500 |"
