"""The demo's questions through both engines, each served by `run_eval.py --auto_serve`: the same trajectories.

The slow lane asks some of them. All of them:
`RESEARCH_TEST_QUESTIONS=300 python -m pytest -n 0 -m slow tests/end_to_end/test_engines_agree.py`.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.run.folder import read_items, read_json
from flashrag.episode import Trajectory
from flashrag.system.engine import Engine
from tests.end_to_end.test_engines import skip_without_sglang
from training.demo.folder import DemoRun
from training.demo.run import BASE_MODEL, ask_questions, build_index, demo_server, write_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # more than its waits together
QUESTIONS = int(os.environ.get("RESEARCH_TEST_QUESTIONS", "20"))


def without_times(trajectory: Trajectory) -> Trajectory:
    """What was asked, sampled, searched, found, counted and scored."""
    calls = tuple(replace(call, latency_s=0.0) for call in trajectory.calls)
    usage = replace(trajectory.usage, latency_s=0.0)
    return replace(trajectory, calls=calls, usage=usage, generate_spans=(), written_at=0.0)


def test_the_demos_questions_are_answered_alike_by_both_engines(tmp_path: Path) -> None:
    skip_without_sglang()
    run = DemoRun(output_dir=tmp_path)
    run.open()
    write_data(run)
    build_index(run)
    file = run.world / "dev.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:: len(lines) // QUESTIONS][:QUESTIONS]))
    with demo_server(run) as url:
        for engine in Engine:
            ask_questions(run, engine, url, "--auto_serve", BASE_MODEL, "--engine", engine)
    answers = {}
    for engine in Engine:
        folder = run.evaluation(engine)
        assert read_json(folder / "summary.json")["token_ids"] == "server"
        answers[engine] = list(map(without_times, read_items(folder)))
        assert [each.error for each in answers[engine]] == [None] * QUESTIONS
        assert sum(each.usage.searches for each in answers[engine]) >= QUESTIONS // 2
    assert answers[Engine.SGLANG] == answers[Engine.VLLM]
