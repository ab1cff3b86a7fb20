"""docs/serving.md's requests and its program, asked of the application over the passages of the clone.

The answers are compared with the printed ones by their shape: the same nesting and keys; texts and numbers may differ.
"""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from flashrag.retriever import check_assets, load_retriever_from
from flashrag.retriever.index_builder import main as build_index
from rag_serving.app import create_app
from rag_serving.settings import ServerSettings
from rag_serving.workers import ThreadWorkers
from tests.docs.clone import PASSAGES, environment, write_lines
from tests.docs.pages import Command, all_printed, blocks

PORT = re.compile(r"(?<=localhost:|127.0.0.1:)800[01]\b")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, served: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    """That of a server over the clone's passages."""
    folder = tmp_path_factory.mktemp("passages")
    corpus = folder / "corpus.jsonl"
    write_lines(corpus, [{"id": key, "contents": text} for key, text in PASSAGES.items()])
    assert build_index(["--retrieval_method", "bm25", "--corpus_path", str(corpus), "--save_dir", str(folder)]) == 0
    settings = ServerSettings.model_validate(
        {"retrieval_method": "bm25", "index_path": str(folder / "bm25"), "corpus_path": str(corpus)}
    )
    app = create_app(settings, ThreadWorkers(lambda: load_retriever_from(check_assets(settings)), 2))
    with served(app, lifespan="on") as url:
        while httpx.get(f"{url}/health").status_code != 200:
            pass
        yield url.rpartition(":")[2]


@pytest.mark.parametrize("command", all_printed("docs/serving.md", "curl "), ids=str)
def test_a_printed_request_is_answered_as_printed(port: str, command: Command, tmp_path: Path) -> None:
    script = PORT.sub(port, command.script).replace("curl ", "curl -sS ")
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    (output,) = command.output
    status, _, body = output.rpartition(" … ")
    if status:
        assert done.stdout.startswith(status)
    assert_same_shape(json.loads(done.stdout.splitlines()[-1]), json.loads(without_ellipses(body)))


def without_ellipses(text: str) -> str:
    """The JSON of a printed answer: what it leaves out is left out.

    >>> without_ellipses('[{"id":"1","contents":"a …"},{"id":"2",…},{…}]')
    '[{"id":"1","contents":"a …"},{"id":"2"},{}]'
    """
    return re.sub(r",…|(?<=\{)…", "", text)


def assert_same_shape(answer: Any, shown: Any) -> None:
    assert isinstance(answer, int | float) if isinstance(shown, float) else type(answer) is type(shown)
    if isinstance(shown, list):
        assert len(answer) == len(shown)
        for each, printed in zip(answer, shown, strict=True):
            assert_same_shape(each, printed)
    if isinstance(shown, dict):
        for key, printed in shown.items():
            assert_same_shape(answer[key], printed)


@pytest.mark.parametrize("block", [each for each in blocks() if each.language == "python"], ids=str)
def test_a_printed_program_runs(port: str, block: Any, tmp_path: Path) -> None:
    write_demo(tmp_path / "outputs" / "demo")
    program = PORT.sub(port, block.text)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def write_demo(folder: Path) -> None:
    """The trajectories that programs read of the demo's output folder, one of the trainer and one of the evaluation."""
    from flashrag.episode import RESEARCH, Episode, Segment, Source, Trajectory
    from flashrag.system.json_lines import append_line
    from verl_search.rollout.trajectories import Retention, TrajectoryWriter

    episode = Episode((1,), [Segment(Source.MODEL, "<think> t </think>", (5,))], dialect=RESEARCH)
    asked = {"question_id": "0012", "question": "Who?", "gold_answers": ("Wu",)}
    trajectory = Trajectory.of_episode(episode, split="val", step=10, **asked)
    asyncio.run(TrajectoryWriter(folder / "training" / "trajectories", Retention()).write(trajectory))
    items = folder / "evaluation" / "demo_dev_research_trained" / "items.jsonl"
    items.parent.mkdir(parents=True)
    append_line(items, trajectory.to_json())
