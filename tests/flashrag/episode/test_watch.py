"""The pieces of an answer that comes, against the steps of the same answer once it is whole."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from flashrag.document import Passage
from flashrag.episode import RESEARCH, LiveSteps, Piece, Segment, Source, Step, StepKind, ToolCall
from flashrag.episode.record import read_dialect, segment_steps

THINK, QUERY, RESULT, GENERATION = StepKind.THINK, StepKind.QUERY, StepKind.RESULT, StepKind.GENERATION
FOUND = ToolCall("q", (Passage("7", '"King"\nWu', 0.5),))


def joined(pieces: Sequence[Piece]) -> list[Step]:
    """What a reader sees of the pieces."""
    shown: list[Step] = []
    for piece in pieces:
        if piece.starts:
            shown.append(Step(piece.kind, "", piece.passages))
        assert shown[-1].kind is piece.kind
        shown[-1] = shown[-1]._replace(text=shown[-1].text + piece.text)
    return shown


def seen(parts: Sequence[str], text: str | None = None, dialect: str | None = RESEARCH.name) -> list[Piece]:
    """The pieces of one segment of the model, which the server sends in these parts."""
    pieces: list[Piece] = []
    live = LiveSteps(pieces.append, dialect)
    live.begins()
    for part in parts:
        live.writes(part)
    live.ends(Segment(Source.MODEL, "".join(parts) if text is None else text), None)
    return pieces


WORDS = st.sampled_from([*RESEARCH.tags, "<python>", "</python>", "<", "</", "<thi", " ", "\n", "\x1f", "Wu", "ü <b>"])


@given(st.lists(WORDS, max_size=12).map("".join), st.data())
def test_joined_pieces_are_the_steps_however_the_text_is_cut(text: str, data: st.DataObject):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    steps = list(segment_steps(Segment(Source.MODEL, text), None, read_dialect("research")))
    assert joined(seen(parts)) == steps
    assert joined(seen([], text)) == steps  # of a server that does not stream


def test_text_is_shown_as_soon_as_it_is_no_tag():
    shown: list[Piece] = []
    live = LiveSteps(shown.append, "research")

    def after(text: str) -> list[Piece]:
        shown.clear()
        live.writes(text)
        return list(shown)

    assert after("<thi") == []
    assert after("nk> I am") == [Piece(THINK, ""), Piece(THINK, "I am", starts=False)]
    assert after(" </") == []
    assert after("b> x </think") == [Piece(THINK, " </b> x", starts=False)]
    assert after(">\n<search>") == [Piece(QUERY, "")]


def test_a_request_that_is_sent_again_takes_back_what_it_wrote():
    pieces: list[Piece] = []
    live = LiveSteps(pieces.append, "research")
    live.begins()
    live.writes("<think> a")
    live.begins()
    live.begins()  # nothing was written since
    live.writes("b")
    live.ends(Segment(Source.MODEL, "b"), None)
    assert pieces == [
        Piece(THINK, ""),
        Piece(THINK, "a", starts=False),
        Piece(GENERATION, "", retracts=True),
        Piece(GENERATION, "b"),
    ]


def test_a_result_comes_with_the_passages_of_its_call():
    pieces: list[Piece] = []
    live = LiveSteps(pieces.append, "research")
    live.ends(Segment(Source.RESULT, " <result>\nWu\n</result>", call=0), FOUND)
    live.ends(Segment(Source.RESULT, " <result>\nno more\n</result>"), None)
    assert pieces == [Piece(RESULT, "Wu", passages=FOUND.passages), Piece(RESULT, "no more")]


def test_a_method_without_episodes_shows_its_queries_too():
    pieces: list[Piece] = []
    live = LiveSteps(pieces.append, None)
    live.ends(Segment(Source.RESULT, "", call=0), FOUND)
    live.ends(Segment(Source.MODEL, "<think> Wu"), None)
    assert pieces == [Piece(QUERY, "q"), Piece(RESULT, "", passages=FOUND.passages), Piece(GENERATION, "<think> Wu")]
