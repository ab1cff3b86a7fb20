"""The configuration that every run of the methods' benchmark shares, and what the command does with it."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from evaluation.command_line import load_settings, parse_command_line
from scripts.bench import methods
from scripts.bench.methods import BASE_MODEL, CONFIG, MODEL_TOKENS, main
from scripts.bench.servers import Server

QUESTION = {"id": "q1", "question": "Who led Zhou?", "golden_answers": ["Wu"], "metadata": {"supporting": ["Zhou"]}}


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A folder like the demo's, with a trained model and a question."""
    checkpoint = tmp_path / "demo" / "training" / "global_step_20" / "actor"
    checkpoint.mkdir(parents=True)
    (checkpoint / "huggingface").symlink_to(BASE_MODEL)
    (tmp_path / "demo" / "data" / "demo").mkdir(parents=True)
    (tmp_path / "demo" / "data" / "demo" / "dev.jsonl").write_text(json.dumps(QUESTION) + "\n", encoding="utf-8")
    return tmp_path / "demo"


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    """The base model with a chat template."""
    folder = shutil.copytree(BASE_MODEL, tmp_path / "chat_model")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}\n{% endfor %}", encoding="utf-8"
    )
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of each evaluation, in place of servers and evaluations."""
    runs: list[list[str]] = []
    monkeypatch.setattr(methods, "our_server", lambda *_: contextlib.nullcontext(Server("http://127.0.0.1:1", None)))
    monkeypatch.setattr(methods, "model_server", lambda _: contextlib.nullcontext(("http://127.0.0.1:2", None)))
    monkeypatch.setattr(methods, "evaluation", lambda arguments: runs.append(arguments) or 0)
    return runs


def test_every_method_is_evaluated_and_the_report_is_over_the_folders_of_the_runs(demo: Path, asked: list[list[str]]):
    flags = ["--demo_dir", str(demo), "--out", str(demo.parent / "out")]
    assert main([*flags, "--models", "base", "trained", "--methods", "research", "naive"]) == 0
    *runs, report = asked
    settings = [load_settings(parse_command_line(run)) for run in runs]
    notes_and_methods = [("base", "research"), ("base", "naive"), ("trained", "research"), ("trained", "naive")]
    assert [(one.save_note, one.method_name) for one in settings] == notes_and_methods
    assert report == [
        "report",
        *(str(one.run_folder) for one in settings),
        "--out",
        str(demo.parent / "out" / "report"),
    ]


def test_the_shared_configuration_fits_the_demo_s_model(demo: Path, asked: list[list[str]]):
    assert main(["--demo_dir", str(demo), "--methods", "flare"]) == 0
    settings = load_settings(parse_command_line(asked[0]))
    assert asked[0][:2] == ["--config_path", str(CONFIG)]
    assert settings.generator_max_input_len == MODEL_TOKENS == 2048
    assert (settings.retrieval_topk, settings.max_searches, settings.generation_params.temperature) == (2, 4, 0.0)


def test_an_evaluation_that_ends_badly_ends_the_command(
    demo: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(methods, "evaluation", lambda _: 2)
    assert main(["--demo_dir", str(demo), "--methods", "flare"]) == 1
    assert "flare ended with exit code 2" in capsys.readouterr().err
    assert asked == []


def test_questions_without_their_corpus_are_refused(demo: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--demo_dir", str(demo), "--questions", "q.jsonl"]) == 2
    assert "belong together" in capsys.readouterr().err


def test_a_model_s_folder_with_both_prompts_and_flags_of_the_evaluation(
    demo: Path, chat_model: Path, asked: list[list[str]]
):
    questions = demo / "nq.jsonl"
    questions.write_text(json.dumps(QUESTION), encoding="utf-8")
    given = ["--questions", str(questions), "--serving_config", "serving.yaml", "--max_searches", "2"]
    flags = ["--models", f"instruct={chat_model}", "--prompts", "plain", "chat", "--methods", "naive", *given]
    assert main([*flags, "--out", str(demo / "out")]) == 0
    *runs, report = asked
    settings = [load_settings(parse_command_line(run)) for run in runs]
    assert [(one.save_note, one.apply_chat, one.max_searches) for one in settings] == [
        ("instruct", False, 2),
        ("instruct_chat", True, 2),
    ]
    assert {one.generator_model for one in settings} == {str(chat_model)}
    assert report[1:3] == [str(demo / "out" / f"nq_naive_{note}") for note in ("instruct", "instruct_chat")]


def test_a_model_is_the_demo_s_or_has_a_name_and_a_folder(demo: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--demo_dir", str(demo), "--models", "instruct"]) == 2
    assert "--models instruct: expected base, trained or NAME=FOLDER" in capsys.readouterr().err


def test_what_a_model_or_its_questions_do_not_allow_is_left_out_before_a_server_starts(
    demo: Path, chat_model: Path, asked: list[list[str]], capsys: pytest.CaptureFixture[str]
):
    (demo / "data" / "demo" / "dev.jsonl").write_text(json.dumps({**QUESTION, "metadata": {}}), encoding="utf-8")
    flags = ["--demo_dir", str(demo), "--out", str(demo.parent / "out"), "--methods", "search-r1", "oracle-passages"]
    assert main([*flags, "naive", "--models", f"instruct={chat_model}", "base", "--prompts", "plain", "chat"]) == 0
    *runs, _ = asked
    settings = [load_settings(parse_command_line(run)) for run in runs]
    assert [(one.save_note, one.method_name) for one in settings] == [
        ("instruct", "naive"),
        ("instruct_chat", "search-r1"),
        ("instruct_chat", "naive"),
        ("base", "search-r1"),
        ("base", "naive"),
    ]
    printed = capsys.readouterr().out
    assert "== search-r1 (instruct) is left out: the models of search-r1" in printed
    assert "== oracle-passages (base) is left out: oracle-passages needs supporting passages" in printed
    assert "== naive (base_chat) is left out: " in printed
    asked.clear()
    assert main([*flags, "--models", f"instruct={chat_model}"]) == 2
    assert "every method is left out" in capsys.readouterr().err
    assert asked == []


def test_a_wrong_setting_ends_the_command_before_a_server_starts(
    demo: Path, asked: list[list[str]], capsys: pytest.CaptureFixture[str]
):
    assert main(["--demo_dir", str(demo), "--retrieval_topk", "0"]) == 2
    assert "retrieval_topk" in capsys.readouterr().err
    assert asked == []
