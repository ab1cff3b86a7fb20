"""One self-contained HTML page: tables, plots, and a browser of every trajectory. No network, no server, no build.

The page contains the trajectories, compressed in chunks that the browser unpacks on demand, so that a page with ten
thousand of them stays fast. The page's own code is static/report.{html,css,js},
over what the page of one question (evaluation/asking) shows in the same way: static/trajectory.{css,js}.
"""

import base64
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from flashrag.document import Passage
from flashrag.episode import Segment, Source, StepKind, Trajectory, steps
from flashrag.metrics import exact_match, holds_answer
from flashrag.prompts import PromptRecord

Decode = Callable[[list[int]], str]
STATIC = Path(__file__).with_name("static")
CHUNK_TRAJECTORIES = 200


@dataclass(frozen=True, slots=True)
class Run:
    """One run on the page. With `decode` (ids to text), the page shows each token of its episodes."""

    name: str
    trajectories: Sequence[Trajectory]
    decode: Decode | None = None
    control: str | None = None  # of its searches; None if the run does not say
    prompt: PromptRecord | None = None  # of a training run


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    svg: str


def render_page(title: str, table_html: str, notes: Sequence[str], plots: Sequence[Plot], runs: Sequence[Run]) -> str:
    """The page's HTML. `table_html` and the plots' SVG are trusted; every other text is escaped or encoded as data."""
    pairs = [(index, trajectory) for index, run in enumerate(runs) for trajectory in run.trajectories]
    index = {
        "runs": [run.name for run in runs],
        "chunkSize": CHUNK_TRAJECTORIES,
        "rows": [_row(run, trajectory) for run, trajectory in pairs],
    }
    shown = [[asdict(block) for block in blocks(trajectory, runs[run].decode)] for run, trajectory in pairs]
    chunks = [shown[start : start + CHUNK_TRAJECTORIES] for start in range(0, len(shown), CHUNK_TRAJECTORIES)]
    figures = "".join(f"<figure><figcaption>{escape(p.title)}</figcaption>{p.svg}</figure>" for p in plots)
    return Template((STATIC / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=_static("trajectory.css", "report.css"),
        table=table_html,
        notes="".join(f"<p>{escape(note)}</p>" for note in notes),
        plots=figures,
        data="\n".join([_script("index", index), *(_script(f"chunk-{n}", chunk) for n, chunk in enumerate(chunks))]),
        script=_static("trajectory.js", "report.js"),
    )


def _static(*names: str) -> str:
    """The page's own files: what it shares with the page of one question first."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)


def _row(run: int, trajectory: Trajectory) -> list[object]:
    """The facts of one trajectory for the list and its filters, in the order of report.js."""
    t = trajectory
    return [run, t.question_id, t.question, t.gold_answers, t.answer, verdict(t), t.end_reason, t.usage.searches,
            t.usage.completion_tokens, t.step, note(t)]  # fmt: skip


def _script(name: str, content: object) -> str:
    """A script element that holds data. The data is base64, so that it cannot close the element."""
    packed = gzip.compress(json.dumps(content, ensure_ascii=False).encode("utf-8", errors="replace"), mtime=0)
    return f'<script type="text/plain" id="{name}">{base64.b64encode(packed).decode("ascii")}</script>'


@dataclass(frozen=True, slots=True)
class Block:
    """One part of a trajectory. `sampled` tells whether the model wrote it (None if the method keeps no tokens).

    `tokens` holds the text and log-probability of each token; it is empty without a tokenizer.
    """

    kind: str
    text: str
    sampled: bool | None = None
    token_count: int | None = None
    passages: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[tuple[str, float | None]] = field(default_factory=list)


def verdict(trajectory: Trajectory) -> str:
    """The verdict on a trajectory: "right", "wrong" or "failed"."""
    if trajectory.failed:
        return "failed"
    return "right" if exact_match(trajectory.answer, trajectory.gold_answers) else "wrong"


def note(trajectory: Trajectory) -> str:
    """The error of a failed question, or the reward of a rollout with its reason."""
    if trajectory.error is not None:
        return str(trajectory.error)
    return "" if trajectory.reward is None else f"reward {trajectory.reward:g}: {trajectory.reward_reason}"


def blocks(trajectory: Trajectory, decode: Decode | None = None) -> list[Block]:
    """The blocks of a trajectory: an episode's segments (with tokens if `decode` is given), or else its steps."""
    if trajectory.dialect is not None:
        return [_segment_block(segment, trajectory, decode) for segment in trajectory.segments]
    return list(_step_blocks(trajectory))


def _segment_block(segment: Segment, trajectory: Trajectory, decode: Decode | None) -> Block:
    sampled = segment.source is Source.MODEL
    log_probs = segment.log_probs or [None] * len(segment.token_ids)
    tokens = []
    if decode is not None:
        pairs = zip(segment.token_ids, log_probs, strict=True)
        tokens = [(decode([token_id]), log_prob) for token_id, log_prob in pairs]
    found = trajectory.calls[segment.call].passages if segment.call is not None else ()
    passages = shown_passages(found, trajectory.gold_answers)
    return Block(segment.source.value, segment.text, sampled, len(segment.token_ids), passages, tokens)


def _step_blocks(trajectory: Trajectory) -> Iterator[Block]:
    for step in steps(trajectory):
        passages = shown_passages(step.passages, trajectory.gold_answers) if step.kind is StepKind.RESULT else []
        yield Block(step.kind.value, step.text, passages=passages)


def shown_passages(passages: Sequence[Passage], gold_answers: Sequence[str] = ()) -> list[dict[str, Any]]:
    return [
        {"id": p.id, "contents": p.contents, "score": p.score, "has_answer": holds_answer(p.contents, gold_answers)}
        for p in passages
    ]
