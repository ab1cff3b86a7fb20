"""What a command says to a mistaken argument."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from flashrag.errors import UserError
from flashrag.system.arguments import CommandParser, boolean, flag, in_range, parse_options


@pytest.fixture
def parser() -> CommandParser:
    parser = CommandParser(prog="serve")
    parser.add_argument("--port", type=in_range(int, 0, 65535))
    parser.add_argument("--k1", type=in_range(float, 0.0))
    return parser


def test_numbers_within_their_bounds_are_taken(parser: CommandParser) -> None:
    for port in (0, 65535):
        assert parser.parse_args(["--port", str(port)]).port == port
    assert parser.parse_args(["--k1", "0"]).k1 == 0.0
    assert parser.parse_args(["--k1", "1e9"]).k1 == 1e9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "65536"], "argument --port: 65536 was given; expected an integer from 0 to 65535"),
        (["--port", "-1"], "argument --port: -1 was given; expected an integer from 0 to 65535"),
        (["--port", "http"], "argument --port: http was given; expected an integer from 0 to 65535"),
        (["--port", "80.5"], "argument --port: 80.5 was given; expected an integer from 0 to 65535"),
        (["--k1", "nan"], "argument --k1: nan was given; expected a number from 0.0 on"),
        (["--k1", "inf"], "argument --k1: inf was given; expected a number from 0.0 on"),
        (["--prot", "80"], "unrecognized arguments: --prot 80; did you mean '--port'?"),
        (["--port"], "argument --port: expected one argument"),
    ],
)
def test_a_mistake_is_told_in_one_line(parser: CommandParser, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        parser.parse_args(arguments)
    assert str(refused.value) == message if message.endswith("?") else f"{message}; --help shows the arguments"


def test_help_gives_every_flag_a_placeholder_and_its_default() -> None:
    parser = CommandParser(prog="serve", description="Serves.\n\nUntil Ctrl-C.")
    parser.add_argument("--model", required=True, metavar="NAME", help="of the model")
    group = parser.add_argument_group("server")
    group.add_argument("--port", type=in_range(int, 0, 65535), default=8010, help="0 takes a free one")
    group.add_argument("--log", type=Path, default=Path("out.log"), help="its output")
    group.add_argument("--wait", type=float, default=2.5, metavar="SECONDS", help="for an answer")
    group.add_argument("--alias", help="name to serve under (default: the model's)")
    group.add_argument("--quiet", action="store_true", help="print nothing")
    assert (
        parser.format_help()
        == """usage: serve --model NAME [options]

Serves.

Until Ctrl-C.

options:
  -h, --help      show this help message and exit
  --model NAME    of the model

server:
  --port N        0 takes a free one (default: 8010)
  --log PATH      its output (default: out.log)
  --wait SECONDS  for an answer (default: 2.5)
  --alias TEXT    name to serve under (default: the model's)
  --quiet         print nothing
"""
    )


@dataclass(frozen=True)
class MergeOptions:
    """Merge files."""

    files: Sequence[Path] = flag("files to merge")
    sizes: Sequence[int] = flag("their sizes", (1, 2))
    limit: int | None = flag("how many (default: all)", None)
    dry: bool = flag("write nothing", False)
    chat: bool = flag("as a conversation", False, action="store", type=boolean)


def test_the_fields_of_a_dataclass_are_the_flags_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_options(MergeOptions, "merge", ["--files", "a", "b"]) == MergeOptions([Path("a"), Path("b")])
    given = ["--files", "a", "--sizes", "3", "--limit", "4", "--dry"]
    assert parse_options(MergeOptions, "merge", given) == MergeOptions([Path("a")], [3], 4, True)
    with pytest.raises(UserError, match="--files"):
        parse_options(MergeOptions, "merge", [])
    with pytest.raises(SystemExit):
        parse_options(MergeOptions, "merge", ["--help"])
    text = capsys.readouterr().out
    assert "Merge files." in text
    assert "--sizes N [N ...]     their sizes (default: 1 2)" in text


def test_a_required_flag_that_is_misspelt_is_named_with_the_nearest() -> None:
    parser = CommandParser(prog="p")
    parser.add_argument("--corpus_path", required=True)
    with pytest.raises(
        UserError, match=r"required: --corpus_path; '--corpus_pth' is no argument; did you mean '--corpus_path'\?"
    ):
        parser.parse_args(["--corpus_pth=x"])
    with pytest.raises(UserError, match=r"required: --corpus_path; --help shows the arguments"):
        parser.parse_args([])
