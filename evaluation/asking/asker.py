"""The servers that a question needs, started and ended with it; and the one way from a question to its trajectory."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from uuid import uuid4

from evaluation.asking.preflight import AskFacts, question_of
from evaluation.run.auto_serve import served
from evaluation.run_eval import REPOSITORY, check_local_retriever, load_retriever
from evaluation.settings import EvalSettings
from flashrag.episode import LiveSteps, Piece, Trajectory
from flashrag.errors import UserError
from flashrag.generator import load_generator
from flashrag.pipeline import METHODS
from flashrag.pipeline.active_pipeline import EpisodePipeline
from flashrag.system.json_lines import append_line, cut_torn_tail
from flashrag.system.local_server import retrieval_server
from flashrag.system.processes import guarded_processes

TRAJECTORIES = "trajectories.jsonl"


class Asker:
    """Answers questions by one method; keeps each trajectory in `path`. Belongs to one event loop."""

    def __init__(self, settings: EvalSettings) -> None:
        self.settings = settings
        self.path = settings.save_dir / TRAJECTORIES
        method = METHODS[settings.method_name].pipeline
        retriever = load_retriever(settings, check_local_retriever(settings), ()) if method.needs_retriever else None
        generator = load_generator(settings)
        self._connections = (retriever, generator)
        self._pipeline = method(settings, retriever, generator)
        self.served_name = generator.served_name
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                cut_torn_tail(self.path)
        except OSError as error:
            raise UserError(f"save_dir={settings.save_dir} cannot be written ({error}); give another folder") from error

    async def answer(self, question: str, show: Callable[[Piece], object]) -> Trajectory:
        """The trajectory of a question; one of a failed question holds the error. `show` gets its steps as they come.

        Raises `UserError` if it cannot be kept.
        """
        pipeline = self._pipeline
        watcher = LiveSteps(show, pipeline.dialect.name if isinstance(pipeline, EpisodePipeline) else None)
        trajectory = await pipeline.answer_watched(question_of(question, uuid4().hex[:12]), watcher)
        try:
            append_line(self.path, trajectory.to_json())
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error}); give another --save_dir") from error
        return trajectory

    async def aclose(self) -> None:
        for connection in self._connections:
            if hasattr(connection, "aclose"):  # a local retriever has no connection to close
                await connection.aclose()


@contextmanager
def started(facts: AskFacts) -> Iterator[EvalSettings]:
    """The settings with the addresses of the servers, which run for the length of the block if they are ours."""
    settings, options = facts.settings, facts.options
    with guarded_processes(), ExitStack() as servers:
        if (config := options.search_config) is not None and facts.needs_search:
            print("starting the demo's retrieval server …", file=sys.stderr, flush=True)
            log = settings.save_dir / "retrieval_server.log"
            script = REPOSITORY / "rag_serving" / "serving.py"
            url = servers.enter_context(retrieval_server(script, config, log))
            settings = settings.model_copy(update={"remote_retriever_url": url})
        if (checkpoint := options.command_line.auto_serve) is not None:
            settings = servers.enter_context(served(checkpoint, settings, options.command_line))
        yield settings


def figures(trajectory: Trajectory) -> str:
    """What an answer took, in words."""
    usage = trajectory.usage
    searches = "1 search" if usage.searches == 1 else f"{usage.searches} searches"
    return f"{searches}, {usage.completion_tokens} tokens, {usage.latency_s:.1f} s, ended by {trajectory.end_reason}"
