"""The demo's folder and report, without engines: what a second run does, and where the figures come from."""

import asyncio
import json
from pathlib import Path

import pandas
import pytest

from flashrag.episode import Trajectory
from flashrag.errors import UserError
from flashrag.system.json_lines import append_line
from flashrag.system.processes import tail
from training.demo.folder import DemoRun, Stopwatch
from training.demo.report import plot_curves, read_curves, same_answers, show_report, token_exactness, write_report
from training.demo.run import check_cpu_stack, main, write_data
from training.demo.world import make_world
from training.trainer_process import trainer_environment
from verl_search.rollout.trajectories import Retention, TrajectoryWriter


def test_a_run_is_of_twenty_steps_unless_told_otherwise() -> None:
    run = DemoRun()
    assert (run.output_dir, run.seed, run.steps, run.irrelevant_search) == (Path("outputs/demo"), 1, 20, False)


def test_a_second_run_with_other_options_says_how_to_start_afresh(tmp_path: Path) -> None:
    DemoRun(output_dir=tmp_path / "demo").open()
    DemoRun(output_dir=tmp_path / "demo").open()
    with pytest.raises(UserError, match=r"'seed': 1.*'seed': 2.*--fresh"):
        DemoRun(output_dir=tmp_path / "demo", seed=2).open()


def test_an_output_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"--output_dir .*taken cannot be written"):
        DemoRun(output_dir=tmp_path / "taken").open()


def test_fresh_removes_a_demo_folder_and_nothing_else(tmp_path: Path) -> None:
    demo, other = tmp_path / "demo", tmp_path / "other"
    DemoRun(output_dir=demo).open()
    (demo / "report.json").write_text("{}")
    DemoRun(output_dir=demo, seed=5, fresh=True).open()
    assert not (demo / "report.json").exists()
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no demo folder"):
        DemoRun(output_dir=other, fresh=True).open()
    assert (other / "thesis.tex").exists()


def test_an_unknown_flag_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sede", "1"]) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --sede 1; did you mean '--seed'?\n"


def test_a_finished_stage_is_skipped_and_time_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    product = tmp_path / "product"
    watch = Stopwatch(tmp_path / "seconds.json")
    with pytest.raises(RuntimeError):
        watch.stage("index", product, lambda: (_ for _ in ()).throw(RuntimeError("killed")))
    assert "index" in json.loads((tmp_path / "seconds.json").read_text())
    again = Stopwatch(tmp_path / "seconds.json")
    again.stage("index", product, product.touch)
    again.stage("index", product, lambda: pytest.fail("ran twice"))
    assert "index: done before" in capsys.readouterr().out


def test_the_control_run_searches_no_article_about_anything_of_its_world(tmp_path: Path) -> None:
    run = DemoRun(output_dir=tmp_path, irrelevant_search=True)
    write_data(run)
    searched = [json.loads(line)["contents"] for line in run.corpus.read_text().splitlines()]
    titles = {contents.partition("\n")[0].strip('"') for contents in searched}
    assert len(titles) > 100
    assert not titles & make_world(1).facts.keys()
    rows = pandas.read_parquet(run.world / "dev.parquet")
    questions = [json.loads(line) for line in (run.world / "dev.jsonl").read_text().splitlines()]
    assert [*rows["question"]] == [question["question"] for question in questions]
    assert {*rows["data_source"]} == {"1hop", "2hop"}


def test_curves_take_the_last_value_of_a_repeated_step(tmp_path: Path) -> None:
    entries = [
        {"step": 0, "data": {"val-aux/2hop/em/mean@1": 0.1}},
        {"step": 1, "data": {"rollout/searches": 1.0}},
        {"step": 1, "data": {"rollout/searches": 1.5}},
    ]
    (tmp_path / "1.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    curves = read_curves(tmp_path)
    assert curves["validation EM, 2-hop"] == {0: 0.1}
    assert curves["searches"] == {1: 1.5}
    assert curves["sampled"] == {}
    plot_curves(curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_trainer_and_evaluation_are_compared_question_by_question(tmp_path: Path) -> None:
    run = DemoRun(output_dir=tmp_path, steps=4)
    (run.training / "metrics").mkdir(parents=True)
    writer = TrajectoryWriter(run.training / "trajectories", Retention(keep_every=1))

    def answered(number: int, answer: str, em: float, step: int | None = None) -> Trajectory:
        return Trajectory(f"q{number}", "?", ("a",), answer=answer, metrics={"em": em}, split="val", step=step)

    for kept in (answered(0, "a", 1.0, step=4), answered(1, "b", 0.0, step=4), answered(9, "z", 0.0, step=0)):
        asyncio.run(writer.write(kept))
    run.evaluation("trained").mkdir(parents=True)
    for kept in (answered(0, "a", 1.0), answered(1, "c", 0.0)):
        append_line(run.evaluation("trained") / "items.jsonl", kept.to_json())
    assert same_answers(run) == {"questions": 2, "same_answer": 1, "same_em": 2}
    assert token_exactness(run, read_curves(run.training / "metrics"))["trajectories_checked"] == 3


def test_the_report_holds_each_kind_of_question_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = DemoRun(output_dir=tmp_path)
    run.open()
    (run.training / "trajectories").mkdir(parents=True)
    em = {("base", "1"): 0.5, ("base", "2"): 0.125, ("trained", "1"): 0.75, ("trained", "2"): 1.0}
    for name, searches in (("base", 1.0), ("trained", 2.0)):
        by_hops = {
            hops: {"n": 8, "metrics": {"em": {"mean": em[name, hops]}}, "usage": {"searches": searches}}
            for hops in ("1", "2")
        }
        run.evaluation(name).mkdir(parents=True)
        (run.evaluation(name) / "summary.json").write_text(json.dumps({"by_hops": by_hops}))
    for hops, gold in ((1, "Oslo"), (2, "Rome")):
        kept = Trajectory(f"q{hops}", "Where?", (gold,), answer=gold, metrics={"em": 1.0}, metadata={"hops": hops})
        append_line(run.evaluation("trained") / "items.jsonl", kept.to_json())
    write_report(run, {"world": 1.0, "train": 61.0})
    report = json.loads(run.report.read_text())
    assert (report["em_base"], report["em_trained"], report["searches_trained"]) == (0.125, 1.0, 2.0)
    assert (report["em_base_1hop"], report["em_trained_1hop"], report["n_questions_1hop"]) == (0.5, 0.75, 8)
    show_report(run)
    printed = capsys.readouterr().out
    assert "0.125" in printed and "62 (world 1, train 61)" in printed
    assert "gold: Rome" in printed and "gold: Oslo" not in printed  # a 2-hop question is shown
    assert f"python evaluation/ask.py 'Where?' --demo {tmp_path}" in printed


def test_the_end_of_a_log_survives_odd_bytes(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"one\n\xff\xfe two\nthree\n")
    assert tail(log, 2).endswith("three")
    assert tail(tmp_path / "missing.log") == ""


def test_the_gpu_stack_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.distributions", lambda **_: iter(()))
    with pytest.raises(UserError, match=r"`bash training/run\.sh` makes the other beside it, in \.venv-cpu"):
        check_cpu_stack()


def test_a_cpu_config_is_trained_on_the_cpu_platform(tmp_path: Path) -> None:
    assert trainer_environment("demo", tmp_path)["VERL_PLATFORM"] == "cpu"
    assert "VERL_PLATFORM" not in trainer_environment("research", tmp_path)


def test_a_process_computes_with_its_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    found = trainer_environment("cpu", tmp_path, threads=2)
    assert "OMP_NUM_THREADS" not in found
    assert "OMP_WAIT_POLICY" not in found
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    found = trainer_environment("cpu", tmp_path, threads=2)
    assert (found["OMP_NUM_THREADS"], found["OMP_WAIT_POLICY"]) == ("2", "PASSIVE")


def test_check_shows_the_plan_and_starts_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "démo ½"
    assert main(["--check", "--output_dir", str(folder)]) == 0
    assert f"  written to  {folder}\n  state       starts, or goes on\n" in capsys.readouterr().out
    assert not folder.exists()
    folder.write_text("")
    assert main(["--check", "--output_dir", str(folder / "inside")]) == 2
    assert f"files cannot be written there ({folder} is a file)" in capsys.readouterr().out
    assert main(["--output_dir", str(folder / "inside")]) == 2, "without --check the same is said before the start"
    assert "[demo.folder]" in capsys.readouterr().err
