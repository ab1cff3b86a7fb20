"""What a command says to a mistaken argument."""

import pytest

from flashrag.errors import UserError
from flashrag.system.arguments import CommandParser, in_range


@pytest.fixture
def parser() -> CommandParser:
    parser = CommandParser(prog="serve", allow_abbrev=False)
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
        (["--prot", "80"], "unrecognized arguments: --prot 80"),
        (["--port"], "argument --port: expected one argument"),
    ],
)
def test_a_mistake_is_told_in_one_line(parser: CommandParser, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        parser.parse_args(arguments)
    assert str(refused.value) == f"{message}; --help shows the arguments"
