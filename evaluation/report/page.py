"""One self-contained HTML page: tables, plots, and a browser of every trajectory. No network, no server, no build.

The trajectories travel inside the page, compressed in chunks that the browser unpacks when they are looked at, so ten
thousand of them stay quick. The page's own code is static/report.{html,css,js}.
"""

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from string import Template

from evaluation.report.trajectories import Decode, blocks, note, verdict
from flashrag.episode import Trajectory

STATIC = Path(__file__).with_name("static")
CHUNK_TRAJECTORIES = 200


@dataclass(frozen=True, slots=True)
class Run:
    """One run as the page shows it; with `decode` (ids to text) it shows the tokens of its episodes one by one."""

    name: str
    trajectories: Sequence[Trajectory]
    decode: Decode | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    svg: str


def render_page(title: str, table_html: str, notes: Sequence[str], plots: Sequence[Plot], runs: Sequence[Run]) -> str:
    """The page's HTML. `table_html` and the plots' SVG are trusted; every other text is escaped or travels as data."""
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
        style=(STATIC / "report.css").read_text(encoding="utf-8"),
        table=table_html,
        notes="".join(f"<p>{escape(note)}</p>" for note in notes),
        plots=figures,
        data="\n".join([_script("index", index), *(_script(f"chunk-{n}", chunk) for n, chunk in enumerate(chunks))]),
        script=(STATIC / "report.js").read_text(encoding="utf-8"),
    )


def _row(run: int, trajectory: Trajectory) -> list[object]:
    """The facts of one trajectory for the list and its filters, in the order of report.js."""
    t = trajectory
    return [run, t.question_id, t.question, t.gold_answers, t.answer, verdict(t), t.end_reason, t.usage.searches,
            t.usage.completion_tokens, t.step, note(t)]  # fmt: skip


def _script(name: str, content: object) -> str:
    """Data that no browser runs: base64 holds nothing that could end the element."""
    packed = gzip.compress(json.dumps(content, ensure_ascii=False).encode("utf-8", errors="replace"), mtime=0)
    return f'<script type="text/plain" id="{name}">{base64.b64encode(packed).decode("ascii")}</script>'
