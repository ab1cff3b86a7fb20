"""One line a step, from verl's metrics file."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.progress import ProgressPrinter, SilencePrinter, idle_s, step_line, validation_line
from verl_search.trainer.run_folder import read_metrics

STEP: dict[str, Any] = {
    "critic/score/mean": 0.25,
    "rollout/em": 0.125,
    "rollout/format_rate": 0.9,
    "rollout/searches": 1.5,
    "rollout/response_tokens_sampled": 60.0,
    "rollout/response_tokens_spliced": 90.0,
    "rollout/engine_busy_s": 6.5,
    "timing_s/gen": 8.0,
    "timing_s/old_log_prob": 2.0,
    "timing_s/ref": 1.5,
    "timing_s/update_actor": 5.0,
    "timing_s/step": 17.0,
}
VALIDATION = {
    "val-aux/2hop/em/mean@1": 0.5,
    "val-aux/2hop/searches/mean@1": 1.75,
    "val-core/2hop/reward/mean@1": 0.6,
}


def test_the_engine_is_idle_while_no_episode_decodes() -> None:
    assert idle_s(STEP) == pytest.approx(8.0 - 6.5)
    assert idle_s({**STEP, "rollout/engine_busy_s": 8.1}) == 0.0  # clocks of two processes


def test_idle_time_is_not_told_where_an_engine_also_worked_on_groups_that_were_left_out() -> None:
    left_out = {**STEP, "training/filter_groups/evicted_samples": 3}
    assert idle_s(left_out) is None
    assert "8.0 (-) / " in (step_line(1, 2, left_out) or "")
    assert idle_s({**STEP, "training/filter_groups/discarded_surplus_samples": 0}) is not None


def test_a_step_line_holds_the_figures() -> None:
    line = step_line(3, 40, STEP)
    assert line.startswith("   3/40 |  0.250 | 0.125 |   0.90 |     1.50 |")
    assert line.endswith("8.0 (1.5) / 3.5 / 5.0 / 17.0")


def test_a_step_line_counts_a_critic_whether_the_model_is_trained_or_not() -> None:
    critic = {"timing_s/values": 1.0, "timing_s/update_critic": 4.0}
    assert step_line(3, 40, {**STEP, **critic}).endswith("8.0 (1.5) / 4.5 / 9.0 / 17.0")
    warm_up = {key: value for key, value in STEP.items() if key != "timing_s/update_actor"}
    assert step_line(3, 40, {**warm_up, **critic}).endswith("8.0 (1.5) / 4.5 / 4.0 / 17.0")


def test_validation_is_named_by_source() -> None:
    assert validation_line(10, VALIDATION) == "  10 validation: 2hop: EM 0.500, 1.75 searches"
    assert validation_line(10, STEP) == ""
    assert step_line(0, 40, VALIDATION) == ""
    of_four_answers = {key.replace("@1", "@4"): value for key, value in VALIDATION.items()}
    assert validation_line(10, of_four_answers) == validation_line(10, VALIDATION)


def test_news_are_printed_once_and_a_half_written_line_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "1.jsonl"
    first = json.dumps({"step": 1, "data": STEP})
    second = json.dumps({"step": 2, "data": STEP})
    printer = ProgressPrinter(tmp_path, 40)
    file.write_text(f"{first}\n{second[:20]}")
    printer.print_news()
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == [" step", "   1/"]
    file.write_text(f"{first}\n{second}\n")
    printer.print_news()
    printer.print_news()
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == ["   2/"]
    assert [step for step, _ in read_metrics(tmp_path)] == [1, 2]
    # Only what was added is read: what stands before it may be anything by now.
    read = len(file.read_bytes())
    file.write_text(" " * read + json.dumps({"step": 3, "data": STEP}) + "\n")
    printer.print_news()
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == ["   3/"]


def test_a_resumed_run_prints_only_what_is_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "1.jsonl").write_text(json.dumps({"step": 1, "data": STEP}) + "\n")
    printer = ProgressPrinter(tmp_path, None)
    (tmp_path / "2.jsonl").write_text(json.dumps({"step": 2, "data": STEP}) + "\n")
    printer.print_news()
    assert "   2 |" in capsys.readouterr().out


def test_a_long_silence_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("training.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    log = tmp_path / "train.log"
    printer = SilencePrinter(log)

    def told_after(minutes: float) -> int:
        now[0] += 60 * minutes
        printer.print_news()
        printer.print_news()
        return capsys.readouterr().out.count(f"nothing to {log} for 30 minutes")

    assert told_after(0) == 0
    assert told_after(31) == 1
    assert told_after(31) == 0  # of one silence once
    log.write_text("a line\n")
    assert told_after(31) == 0  # it was written since the last look
    assert told_after(31) == 1
