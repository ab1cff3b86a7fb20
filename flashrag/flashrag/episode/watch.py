"""An answer as it comes: a watcher sees text while the model writes it, and each segment once it is complete.

`LiveSteps` is the watcher for people: the steps of record.py, in pieces. Does not cover: showing them (terminal.py).
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, Self

from flashrag.document import Passage
from flashrag.episode.episode import Segment, Source, ToolCall
from flashrag.episode.record import Step, StepKind, block_kinds, read_dialect, segment_steps


class Watcher(Protocol):
    """Sees the work on one question. A server that does not stream writes nothing before a segment ends."""

    def begins(self) -> None:
        """The model is asked for a segment; again, if a request broke off, and what it wrote no longer counts."""

    def writes(self, text: str) -> None:
        """The model wrote more of its segment."""

    def ends(self, segment: Segment, call: ToolCall | None) -> None:
        """A segment is complete, whoever wrote it; a result comes with the call that it answers."""


class Piece(NamedTuple):
    """More text of the last step or, if `starts`, the beginning of a new one. If `retracts`, the model's text since
    the last result no longer counts."""

    kind: StepKind
    text: str
    starts: bool = True
    passages: tuple[Passage, ...] = ()
    retracts: bool = False

    @classmethod
    def whole(cls, step: Step) -> Self:
        return cls(step.kind, step.text, passages=step.passages)


class LiveSteps:
    """Gives `show` the pieces of the steps of a question: joined, they are the `steps` of its trajectory.

    `dialect` is the name of its episode's, None for a method that runs none.
    """

    def __init__(self, show: Callable[[Piece], object], dialect: str | None) -> None:
        self._show = show
        self._dialect = read_dialect(dialect)
        blocks = block_kinds(self._dialect) if self._dialect else {}
        self._kinds = {tag.open: kind for tag, kind in blocks.items()}
        closed = [tag.close for tag in blocks]
        self._opening, self._any_tag = _any_of(self._kinds), _any_of([*self._kinds, *closed])
        starts = {tag[:end] for tag in (*self._kinds, *closed) for end in range(1, len(tag))}
        # What may still become a tag, and white space that may end a step, wait for the text after them.
        self._waiting = re.compile(rf"\s*(?:{_any_of(starts).pattern})?\Z")
        self._clear()

    def _clear(self) -> None:
        self._kind: StepKind | None = None  # of the block that is open
        self._is_empty, self._held, self._wrote = True, "", False

    def begins(self) -> None:
        if self._wrote:
            self._show(Piece(StepKind.GENERATION, "", retracts=True))
        self._clear()

    def writes(self, text: str) -> None:
        self._wrote, held = True, self._held + text
        while tag := (self._any_tag if self._kind else self._opening).search(held):
            self._give(held[: tag.start()].rstrip())
            self._kind, self._is_empty, held = self._kinds.get(tag[0]), True, held[tag.end() :]
            if self._kind:
                self._show(Piece(self._kind, ""))
        waiting = self._waiting.search(held)
        assert waiting is not None, "an empty end always waits"
        self._give(held[: waiting.start()])
        self._held = held[waiting.start() :]

    def ends(self, segment: Segment, call: ToolCall | None) -> None:
        if segment.source is Source.MODEL:
            if not self._wrote:
                self.writes(segment.text)
            self._give(self._held.rstrip())
        else:
            for step in segment_steps(segment, call, self._dialect):
                self._show(Piece.whole(step))
        self._clear()

    def _give(self, text: str) -> None:
        text = text.lstrip() if self._is_empty else text
        if text:
            self._show(Piece(self._kind or StepKind.GENERATION, text, starts=self._is_empty and not self._kind))
            self._is_empty = False


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches each of the strings, the longest first; nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))) or r"(?!)")
