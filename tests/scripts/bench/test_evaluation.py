import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request

from flashrag.dataset import Question
from flashrag.episode import Segment, Source, Trajectory
from flashrag.pipeline import BasicPipeline, PipelineSettings
from scripts.bench.evaluation import TARGETS, Bench, figures, main
from scripts.bench.report import print_report


def test_the_figures_are_medians_and_the_rounds_ratios(capsys):
    per_s = {"ours": [50.0, 25.0, 40.0], "limit": [50.0, 50.0, 50.0], "sequential": [4.0, 5.0, 4.0]}
    print_report(figures(per_s, failed=1), TARGETS)
    *table, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == {
        "ours_over_sequential": 10.0,  # 12.5, 5, 10
        "ours_over_limit": 0.8,  # 1, 0.5, 0.8
        "ours_per_s": 40.0,
        "sequential_per_s": 4.0,
        "limit_per_s": 50.0,
        "failed": 1,
    }
    assert "| ours_over_sequential | 10 (5–12.5) | >= 8 |" in table


class FakeConnection:
    """In place of the generator and of the retrieval client, which the fake pipeline does not use."""

    served_name = "m"

    async def aclose(self) -> None: ...


def test_the_engine_alone_gets_the_requests_of_the_pipeline(serve: Any):
    asked: list[dict[str, Any]] = []
    app = FastAPI()

    @app.post("/v1/completions")
    async def completions(request: Request) -> dict[str, str]:
        asked.append(await request.json())
        return {}

    bench = Bench(FakeConnection(), FakeConnection(), f"{serve(app)}/v1/completions")

    class Asking(BasicPipeline):
        needs_retriever = needs_generator = False

        async def answer(self, question: Question) -> Trajectory:
            if question.id == "bad":
                raise ValueError("no answer")
            # A prompt of n tokens and two turns of n sampled ones; the result between them has two tokens.
            n = int(question.id)
            sampled, result = Segment(Source.MODEL, "", (7,) * n), Segment(Source.RESULT, "", (5, 5))
            made = {"prompt_ids": (1,) * n, "segments": (sampled, result, sampled)}
            spans = ((0.0, n), (n, 10.0 + n))
            return Trajectory(question.id, question.question, question.golden_answers, **made, generate_spans=spans)

    bench.pipeline = lambda concurrency: Asking(PipelineSettings(concurrency=concurrency))
    questions = [Question(name, "?", ("x",)) for name in ("1", "2", "3", "bad")]
    per_s = bench.measure(questions, few=1, concurrency=1, rounds=1)
    assert {way: len(rounds) for way, rounds in per_s.items()} == {"ours": 1, "limit": 1, "sequential": 1}
    assert bench.failed == 1  # in the round; the pass before the rounds is not measured
    # In the order in which the engine answered: all first turns, then all second ones.
    prompts = [[1], [1, 1], [1, 1, 1], [1, 7, 5, 5], [1, 1, 7, 7, 5, 5], [1, 1, 1, 7, 7, 7, 5, 5]]
    assert [body["prompt"] for body in asked] == prompts
    assert [(body["max_tokens"], body["min_tokens"]) for body in asked] == [(n, n) for n in (1, 2, 3, 1, 2, 3)]


def test_a_folder_without_a_demo_is_refused(tmp_path: Path, capsys):
    assert main(["--demo_dir", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
