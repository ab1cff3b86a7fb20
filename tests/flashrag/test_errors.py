"""How a command reports what it cannot use, and what the light core may import."""

import io
import subprocess
import sys

import pytest

from flashrag.errors import ReSearchError, SearchError, UserError, exit_on_user_error


def test_a_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]):
    @exit_on_user_error
    def main() -> int:
        raise UserError("port=99999 is no port; expected 1 to 65535")

    assert main() == 2
    captured = capsys.readouterr()
    assert captured.err == "error: port=99999 is no port; expected 1 to 65535\n"
    assert captured.out == ""


def test_an_error_of_ours_ends_a_command_with_its_own_code(capsys: pytest.CaptureFixture[str]):
    @exit_on_user_error
    def main() -> int:
        raise SearchError("outage")

    assert main() == 1
    assert capsys.readouterr().err == "error: outage\n"


@pytest.mark.parametrize(
    ("interrupt", "line"),
    [
        (KeyboardInterrupt(), "interrupted\n"),
        (KeyboardInterrupt("the same command goes on"), "interrupted: the same command goes on\n"),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(
    interrupt: KeyboardInterrupt, line: str, capsys: pytest.CaptureFixture[str]
):
    @exit_on_user_error
    def main() -> int:
        raise interrupt

    assert main() == 130
    assert capsys.readouterr().err == line


def test_an_error_that_nobody_meant_keeps_its_traceback():
    @exit_on_user_error
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_finished_command_keeps_its_code(returned: int | None, code: int):
    assert exit_on_user_error(lambda: returned)() == code


def test_there_is_one_hierarchy():
    assert issubclass(UserError, ReSearchError)
    assert issubclass(SearchError, ReSearchError)
    assert not issubclass(SearchError, UserError)


LIGHT_MODULES = [
    "flashrag.client",
    "flashrag.config",
    "flashrag.dataset",
    "flashrag.episode.dialect",
    "flashrag.document",
    "flashrag.episode",
    "flashrag.errors",
    "flashrag.generator",
    "flashrag.metrics",
    "flashrag.pipeline",
    "flashrag.pipeline.methods",
    "flashrag.episode.foreign",
    "flashrag.episode.prompt_ids",
    "flashrag.prompts",
    "flashrag.episode.format_rule",
    "flashrag.episode.result",
    "flashrag.utils",
]


def test_the_light_core_needs_nothing_heavy():
    heavy = ["torch", "faiss", "transformers", "vllm", "ray", "openai", "pandas", "numpy", "rich"]
    program = (
        f"import sys\nfor name in {heavy}: sys.modules[name] = None  # an import of it raises ImportError\n"
        f"for name in {LIGHT_MODULES}: __import__(name)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_letters_that_the_terminal_cannot_show_are_printed_as_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, told = (io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", told)

    @exit_on_user_error
    def main() -> None:
        print("½")
        raise UserError("ü \udcff")

    assert main() == 2
    assert shown.buffer.getvalue() == b"\\xbd\n"
    assert told.buffer.getvalue() == b"error: \\xfc \\udcff\n"
