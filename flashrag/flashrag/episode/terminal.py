"""The steps of an answer in a terminal, each kind in its colour; without colours where rich finds no terminal.

Text of a model or a passage cannot control the terminal.
"""

from typing import TYPE_CHECKING

from flashrag.document import Passage
from flashrag.episode.record import StepKind
from flashrag.episode.watch import Piece

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {
    StepKind.THINK: "cyan",
    StepKind.QUERY: "bold yellow",
    StepKind.FORCED: "yellow",
    StepKind.RESULT: "dim",
    StepKind.GENERATION: "green",
    StepKind.ANSWER: "bold",
}
LABEL_WIDTH = 12
MOST_PASSAGE_CHARS = 300
_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])  # Unicode's Cc except tab and line break


class TerminalView:
    """Prints pieces as they come."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._line_is_open = False

    def show(self, piece: Piece) -> None:
        if piece.retracts:
            self.end_line()
            self._print("the request to the model broke off and is sent again\n", "red")
            return
        if piece.starts:
            self.end_line()
            self._print(f"{piece.kind:<{LABEL_WIDTH}}", "dim")
            self._line_is_open = True
        if piece.passages:
            for rank, passage in enumerate(piece.passages, 1):
                self._print(_shown(passage, rank), STYLES[piece.kind])
            self._line_is_open = False
        else:
            self._print(piece.text.replace("\n", "\n" + " " * LABEL_WIDTH), STYLES[piece.kind])

    def line(self, label: str, text: str, style: str = "") -> None:
        """A whole line of its own."""
        self.end_line()
        self._print(f"{label:<{LABEL_WIDTH}}", "dim")
        self._print(f"{text}\n", style)

    def end_line(self) -> None:
        if self._line_is_open:
            self._print("\n")
        self._line_is_open = False

    def _print(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._console.print(Text(text.translate(_CONTROL), style), end="", soft_wrap=True)


def _shown(passage: Passage, rank: int) -> str:
    """One passage: its rank, score and title, then the beginning of its text."""
    text = " ".join(passage.text.split())
    text = text if len(text) <= MOST_PASSAGE_CHARS else f"{text[: MOST_PASSAGE_CHARS - 1]}…"
    score = "" if passage.score is None else f"{passage.score:.4f}  "
    margin = "" if rank == 1 else " " * LABEL_WIDTH
    return f"{margin}{rank}  {score}{passage.title}\n" + (f"{' ' * LABEL_WIDTH}   {text}\n" if text else "")
