"""`run_eval.py --check` from its command line, over servers in this process: it prints a plan and writes nothing."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.run_eval import main
from flashrag.episode import prompt_token_ids
from flashrag.prompts import choose_prompt

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def arguments(tmp_path: Path, data_dir: Path, small_servers: Any) -> list[str]:
    """The flags of a run that works, in a folder whose name has blanks and letters of several alphabets."""
    keys = {
        "config_path": str(ROOT / "evaluation" / "eval_config.yaml"),
        "method_name": "research",
        "dataset_name": str(tmp_path / "mes données 東京" / "wer.jsonl"),
        "save_dir": str(tmp_path / "mes données 東京" / "out"),
        "generator_max_input_len": "4096",
        **small_servers.flags,
    }
    path = Path(keys["dataset_name"])
    path.parent.mkdir()
    path.write_bytes((data_dir / "kings" / "dev.jsonl").read_bytes())
    return [part for pair in keys.items() for part in (f"--{pair[0]}", pair[1])]


@pytest.fixture
def check(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, str], str]]:
    """The exit code, the plan's entries by name, and all that is printed."""

    def run(*more: str) -> tuple[int, dict[str, str], str]:
        capsys.readouterr()
        code = main([*arguments, *more, "--check"])
        captured = capsys.readouterr()
        assert captured.err == ""
        lines = [line.strip().partition("  ") for line in captured.out.splitlines() if line.startswith("  ")]
        return code, {name: value.strip() for name, _, value in lines}, captured.out

    return run


def test_a_new_run(check: Callable[..., Any], arguments: list[str], tokenizer: Any, tmp_path: Path, small_servers: Any):
    before = sorted(tmp_path.rglob("*"))
    code, plan, out = check("--test_sample_num", "2")
    assert (code, sorted(tmp_path.rglob("*"))) == (0, before)
    folder = tmp_path / "mes données 東京"
    assert plan["file"] == f"{folder}/wer.jsonl"
    assert plan["read"] == "3 questions of 3 records; left out: none"
    assert plan["used"] == "2 of 3 (test_sample_num, the first ones)"
    assert plan["name"] == "research: thinks and searches in turn, as trained here (arXiv 2503.19470)"
    assert plan["prompt"] == str(choose_prompt("qa_template").record(apply_chat=False))
    assert plan["prompt rule"] == "begins without a BOS; plain text without a chat template"
    assert plan["tokens"] == str(len(prompt_token_ids(tokenizer, "Who was the first king of Zhou?")))
    assert "User: Who was the first king of Zhou? Assistant:\n" in out
    assert plan["model"] == f"{small_servers.flags['sgl_remote_url']}: zhou, 4096 tokens"
    assert plan["token ids"] == "server"
    assert plan["folder"] == f"{folder}/out/wer_research"
    assert plan["state"] == "new: 2 questions"
    assert "flashrag 0.1.0" in plan["versions"]
    assert shlex.split(plan["command"]) == [
        "python",
        "evaluation/run_eval.py",
        *arguments,
        "--test_sample_num",
        "2",
    ]
    assert out.endswith("findings\n  0 errors: this would start\n")


def test_a_run_that_continues_and_one_that_is_complete(check: Callable[..., Any], arguments: list[str], tmp_path: Path):
    assert main(arguments) == 0
    folder = tmp_path / "mes données 東京" / "out" / "wer_research"
    assert (folder / "preflight.jsonl").read_text() == ""
    dead = ("--sgl_remote_url", "http://127.0.0.1:1", "--remote_retriever_url", "http://127.0.0.1:1")
    code, plan, _ = check(*dead)
    assert (code, plan["state"]) == (0, "complete: only the scores would be computed again")
    assert (plan["model"], plan["retrieval"]) == ("not asked", "not asked")
    items = (folder / "items.jsonl").read_text().splitlines(keepends=True)
    failed = {**json.loads(items[1]), "error": {"type": "SearchError", "message": "no answer"}}
    (folder / "items.jsonl").write_text(items[0] + json.dumps(failed) + "\n")
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert check()[1]["state"] == "continues: 2 of 3 answered, 1 left"
    assert check("--resume")[1]["state"] == "continues: 1 of 3 answered, 2 left"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept
    code, plan, out = check("--max_searches", "3")
    assert (code, plan["state"]) == (2, "unknown")
    assert "max_searches was 16, is 3" in out


def test_a_complete_run_needs_no_model(check: Callable[..., Any], arguments: list[str], tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(arguments[arguments.index("--generator_model") + 1], model)
    more = ("--generator_model", str(model))
    assert main([*arguments, *more]) == 0
    shutil.rmtree(model)
    code, plan, _ = check(*more)
    assert (code, plan["tokens"], plan["tokenizer"]) == (0, "none: no model is asked", "not asked")
    assert main([*arguments, *more]) == 0


def test_what_is_unknown_does_not_hide_the_rest(check: Callable[..., Any]):
    code, plan, out = check("--generator_model", "/nowhere", "--metrics", "em,yes_no_acc")
    assert (code, plan["tokens"], plan["read"]) == (2, "unknown", "3 questions of 3 records; left out: none")
    assert "error: generator_model=/nowhere does not exist" in out
    assert "warning: metrics has yes_no_acc" in out
    assert "1 error: this would not start" in out


def test_passwords_in_addresses_are_not_shown(check: Callable[..., Any], small_servers: Any):
    url = small_servers.flags["sgl_remote_url"].replace("http://", "http://me:secret@")
    code, plan, out = check("--sgl_remote_url", url, "--remote_retriever_url", "http://me:secret@127.0.0.1:1")
    assert code == 2
    assert "no retrieval server answers at remote_retriever_url=http://127.0.0.1:1" in out
    assert "secret" not in out
    assert plan["model"].startswith(small_servers.flags["sgl_remote_url"])


def test_the_program_leaves_torch_out_of_a_check(arguments: list[str]):
    """It takes most of the time that a tokenizer needs to load."""
    command = [sys.executable, "-X", "importtime", "evaluation/run_eval.py", *arguments, "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, "0 errors: this would start" in done.stdout) == (0, True), done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"transformers", "openai"} <= imported
    assert not {"torch", "sklearn", "vllm"} & imported
    assert "PyTorch was not found" not in done.stderr
