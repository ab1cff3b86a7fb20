"""What a terminal shows of the pieces, with colours and without."""

import io
import os

import pytest
from rich.console import Console

from flashrag.document import Passage
from flashrag.episode import Piece, StepKind
from flashrag.episode.terminal import TerminalView

PIECES = [
    Piece(StepKind.THINK, "who"),
    Piece(StepKind.THINK, " was\nit?", starts=False),
    Piece(StepKind.RESULT, "", passages=(Passage("7", '"King"\nWu\nof Zhou', 0.5), Passage("8", "no title alone"))),
    Piece(StepKind.QUERY, "Zhou"),
    Piece(StepKind.GENERATION, "", retracts=True),
    Piece(StepKind.RESULT, "No results found."),
]


def shown(pieces: list[Piece], **console: object) -> str:
    file = io.StringIO()
    view = TerminalView(Console(file=file, width=40, _environ=os.environ, **console))
    for piece in pieces:
        view.show(piece)
    view.line("answer", "Wu")
    return file.getvalue()


def test_each_step_stands_after_its_kind():
    assert shown(PIECES).splitlines() == [
        "think       who was",
        "            it?",
        "result      1  0.5000  King",
        "               Wu of Zhou",
        "            2  no title alone",
        "query       Zhou",
        "the request to the model broke off and is sent again",
        "result      No results found.",
        "answer      Wu",
    ]


def test_colours_are_a_terminal_s_unless_it_wants_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[36mwho" in shown(PIECES, force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in shown(PIECES, force_terminal=True, color_system="standard")


def test_no_text_controls_the_terminal_or_is_markup():
    evil = "\x1b[2J\x07\x9b31m[red]\r" + "long " * 100
    found = Piece(StepKind.RESULT, "", passages=(Passage("1", f"{evil}\n{evil}"),))
    text = shown([Piece(StepKind.THINK, evil), found])
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\r"}
    assert text.count("[red]") == 3
    (cut,) = [line for line in text.splitlines() if line.endswith("…")]
    assert len(cut) == 15 + 300 - 3  # the margin; the three control characters
