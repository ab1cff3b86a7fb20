"""One self-contained HTML page: tables, plots, and a browser of every trajectory. No network, no server, no build.

The trajectories travel inside the page, compressed in chunks that the browser unpacks when they are looked at, so ten
thousand of them stay quick. The page's own code is evaluation/static/report.{html,css,js}.
"""

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from string import Template

from evaluation.report.trajectories import Trajectory

STATIC = Path(__file__).with_name("static")
CHUNK_TRAJECTORIES = 200


@dataclass(frozen=True, slots=True)
class Run:
    """One run as the page shows it: its name and its trajectories."""

    name: str
    trajectories: Sequence[Trajectory]


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
    steps = [[asdict(step) for step in trajectory.steps] for _, trajectory in pairs]
    chunks = [steps[start : start + CHUNK_TRAJECTORIES] for start in range(0, len(steps), CHUNK_TRAJECTORIES)]
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
    """What the list and its filters need of one trajectory; the order is report.js's."""
    t = trajectory
    return [run, t.id, t.question, t.golds, t.prediction, t.verdict, t.ended_by, t.searches, t.tokens,
            t.training_step, t.note]  # fmt: skip


def _script(name: str, content: object) -> str:
    """Data that no browser runs: base64 holds nothing that could end the element."""
    packed = gzip.compress(json.dumps(content, ensure_ascii=False).encode("utf-8", errors="replace"), mtime=0)
    return f'<script type="text/plain" id="{name}">{base64.b64encode(packed).decode("ascii")}</script>'
