"""Evaluate a served model with search: `python evaluation/run_eval.py --config_path … --method_name research …`.

Checks the input (preflight/), asks the questions, saves each answer at once in the folder of the run, and scores the
answers. To continue a run, repeat its command; `--resume` asks the failed questions again, too. `--auto_serve
CHECKPOINT` exports and serves the model first. `--check` only says what the run would be.
Other commands: `run_eval.py report RUN…`, `run_eval.py compare RUN_A RUN_B`, and `run_eval.py curve …`, which evaluates
every checkpoint of a training run.
Exit codes: 0 done, 1 no question could be answered or no model served, 2 unusable input, 130 interrupted.
"""

import asyncio
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside evaluation
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evaluation.command_line import CommandLine, parse_command_line
from evaluation.preflight import PACKAGES, PLAN, RULES, EvalFacts
from evaluation.report.tables import EvaluatedRun, as_markdown, curve_table, format_table
from evaluation.run.auto_serve import check_auto_serve, served, served_precision
from evaluation.run.curve import command_lines
from evaluation.run.folder import SUMMARY_FILE, RunFolder, read_json
from evaluation.scores.scoring import score_trajectory, summarize, with_scores
from evaluation.settings import EvalSettings
from flashrag.client import RetrievalClient, controlled
from flashrag.dataset import Question
from flashrag.episode import Trajectory
from flashrag.errors import EXIT_INTERRUPTED, exit_on_user_error
from flashrag.generator import load_generator
from flashrag.metrics import exact_match
from flashrag.pipeline import METHODS, BasicPipeline
from flashrag.preflight import (
    Finding,
    PreflightFailed,
    Severity,
    enforce,
    examine,
    keep_findings,
    keep_torch_out_of_a_check,
    show_check,
)
from flashrag.retriever import Assets, Retriever, RetrieverSettings, check_assets, load_retriever_from, prepare_process
from flashrag.reward import Judge, reward_function
from flashrag.system.machine import describe_environment

REPOSITORY = Path(__file__).resolve().parents[1]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    match arguments[:1]:
        case ["report"]:
            from evaluation.report.report import main as report

            return report(arguments[1:])
        case ["compare"]:
            from evaluation.scores.comparison import main as compare

            return compare(arguments[1:])
    try:
        if arguments[:1] == ["curve"]:
            command_line = parse_command_line(arguments[1:])
            return evaluate_each(command_lines(command_line._replace(arguments=tuple(arguments))))
        return evaluate(parse_command_line(arguments))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("repeat the command to continue the run") from None


def evaluate(command_line: CommandLine) -> int:
    """Look at everything, then start or continue one run; returns the exit code."""
    facts, findings = look(command_line)
    if command_line.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    folder, pending = facts.folder, facts.pending
    interrupted = False
    if not pending:
        print(f"{folder.path}: the run is complete")
    else:
        assets = check_local_retriever(facts.settings)  # reads whole files, but serving a model takes longer
        checkpoint = command_line.auto_serve
        serving = served(checkpoint, facts.settings, command_line) if checkpoint else nullcontext()
        with serving as settings_served:
            folder = RunFolder(settings_served, folder.questions) if settings_served else folder
            precision = served_precision(folder.settings, command_line)
            interrupted = ask(folder, pending, assets, findings, precision)
    with folder.working():
        summary = finish(folder, ask_judge=not interrupted)
    return show(folder, summary, interrupted)


def look(command_line: CommandLine) -> tuple[EvalFacts, list[Finding]]:
    facts = EvalFacts(command_line)
    facts.gather()
    return facts, examine(RULES, facts)


def evaluate_each(lines: Sequence[CommandLine]) -> int:
    """Evaluate one checkpoint after the other, once all of them have been looked at; returns the highest exit code."""
    findings = [] if lines[0].check else [finding for line in lines for finding in look(line)[1]]
    if errors := list(dict.fromkeys(finding for finding in findings if finding.severity is Severity.ERROR)):
        raise PreflightFailed(errors)
    code = 0
    for line in lines:
        print(f"{line.auto_serve}:", flush=True)
        code = max(code, evaluate(line))
        if code == EXIT_INTERRUPTED:
            return code
    if not lines[0].check:
        folders = [check_auto_serve(line).run_folder for line in lines]
        runs = [EvaluatedRun(each.name, read_json(each / SUMMARY_FILE), {}) for each in folders]
        print(as_markdown(curve_table(runs)))
        print(f"with a plot: python evaluation/run_eval.py report {shlex.join(map(str, folders))}")
    return code


def ask(
    folder: RunFolder,
    pending: Sequence[Question],
    assets: Assets | None,
    findings: Sequence[Finding],
    precision: str | None,
) -> bool:
    """Ask the model, which is served in the given precision, the pending questions; returns whether it was stopped."""
    settings = folder.settings
    method = METHODS[settings.method_name].pipeline
    retriever = load_retriever(settings, assets, folder.questions) if method.needs_retriever else None
    generator = load_generator(settings) if method.needs_generator else None
    pipeline = method(settings, retriever, generator)
    pipeline.prepare(folder.questions)
    with folder.working():
        served_name = generator.served_name if generator else None
        folder.start_session(describe_environment(REPOSITORY, PACKAGES), served_name, pipeline.prompt, precision)
        keep_findings(findings, folder.path)
        done = folder.n_answers - len(pending)
        already = f", {done} of them already answered" if done else ""
        each = f", {settings.num_samples} answers to each" if settings.num_samples > 1 else ""
        what = f"{len(folder.questions)} questions of {settings.dataset_label}{each}"
        print(f"{what}{already} -> {folder.path}", flush=True)
        try:
            asyncio.run(answer_with_progress(folder, pipeline, pending, (generator, retriever)))
        except (KeyboardInterrupt, asyncio.CancelledError):
            return True
        finally:
            folder.end_session(getattr(generator, "token_id_origin", None))
    return False


def check_local_retriever(settings: EvalSettings) -> Assets | None:
    """The files of a local retriever, None if none is needed. Raises `UserError` for files that do not fit."""
    if settings.use_remote_retriever or not METHODS[settings.method_name].pipeline.needs_retriever:
        return None
    return check_assets(RetrieverSettings(**settings.retriever, retrieval_topk=settings.retrieval_topk))


def load_retriever(settings: EvalSettings, assets: Assets | None, questions: Sequence[Question]) -> Any:
    """The retriever in this process or the client of its server, under the control of the settings."""
    return controlled(
        _own_retriever(settings, assets),
        settings.search_control,
        seed=settings.seed,
        delay_s=settings.search_control_delay_s,
        questions=lambda: (question.question for question in questions),
    )


def _own_retriever(settings: EvalSettings, assets: Assets | None) -> RetrievalClient | Retriever:
    if assets is not None:
        prepare_process()
        return load_retriever_from(assets)
    assert settings.remote_retriever_url is not None, "checked by EvalSettings"
    return RetrievalClient(
        settings.remote_retriever_url,
        top_n=settings.retrieval_topk,
        timeout_s=settings.retriever_timeout_s,
        deadline_s=settings.retriever_deadline_s,
    )


async def answer_with_progress(
    folder: RunFolder, pipeline: BasicPipeline, pending: Sequence[Question], connections: Sequence[Any]
) -> None:
    """Answer the questions, show exact match so far and time left in a bar, and close the connections."""
    from tqdm import tqdm

    # SIGTERM cancels like Ctrl-C; saved answers are kept.
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    failed_again = len(pending) > folder.n_answers - len(folder.items)  # more than those without an answer
    done = right = failed = 0

    def count(trajectory: Trajectory) -> None:
        nonlocal done, right, failed
        done += 1
        right += exact_match(trajectory.answer, trajectory.gold_answers)
        failed += trajectory.failed

    for trajectory in folder.trajectories():
        if not (trajectory.failed and failed_again):
            count(trajectory)
    unit = "question" if folder.settings.num_samples == 1 else "answer"
    with tqdm(total=folder.n_answers, initial=done, unit=unit) as bar:

        def keep(trajectory: Trajectory) -> None:
            folder.add(trajectory)
            count(trajectory)
            bar.update()
            bar.set_postfix(em=f"{right / done:.3f}", failed=failed, refresh=False)

        try:
            await pipeline.answer_all(pending, keep)
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            for connection in connections:
                if hasattr(connection, "aclose"):  # a local retriever has no connection to close
                    await connection.aclose()


def finish(folder: RunFolder, *, ask_judge: bool = True) -> dict[str, Any]:
    """Ask the judge if the settings name one, and write the scores."""
    settings = folder.settings
    reward_of = None if settings.reward is None else reward_function(settings.reward)
    judge = None
    extra: dict[str, int] = {}
    if settings.metric_setting.judge is not None:
        judge = Judge(settings.metric_setting.judge, folder.path / "judge.jsonl")
        if ask_judge:
            judge_answers(folder, judge)
        extra["n_unjudged"] = len(unjudged(folder, judge))

    def score(trajectory: Trajectory) -> Trajectory:
        verdict = judge.known_verdict(trajectory) if judge else None
        scores = score_trajectory(trajectory, settings.metrics, settings.metric_setting, verdict)
        return with_scores(trajectory, scores, reward_of)

    return folder.finish(score, lambda trajectories: {**summarize(trajectories, settings.metric_setting), **extra})


def unjudged(folder: RunFolder, judge: Judge) -> list[Trajectory]:
    """The answers that the judge has not judged, without their long passages, which the judge does not need."""
    unseen = (t for t in folder.trajectories() if judge.known_verdict(t) is None)
    return [replace(trajectory, segments=(), calls=()) for trajectory in unseen]


def judge_answers(folder: RunFolder, judge: Judge) -> None:
    """Ask the judge about every answer that it has not judged; warn about answers without a verdict."""
    from tqdm import tqdm

    unseen = unjudged(folder, judge)
    if not unseen:
        return
    with tqdm(total=len(unseen), unit="verdict") as bar:
        failures = asyncio.run(judge.verdicts(unseen, bar.update))
    if failures:
        first = next(iter(failures.values()))
        print(
            f"warning: {len(unjudged(folder, judge))} answers were not judged and count as wrong; the first: {first}. "
            "Repeat the command to ask for them again",
            file=sys.stderr,
        )


def show(folder: RunFolder, summary: dict[str, Any], interrupted: bool) -> int:
    asked = "questions" if folder.settings.num_samples == 1 else "answers"
    print(format_table(summary))
    if summary["token_ids"] == "re-tokenised":
        print("note: the model server returns text only, so its responses were encoded again with the local tokenizer")
    print(f"written to {folder.path}")
    if summary["n_failed"]:
        first = next(trajectory for trajectory in folder.trajectories() if trajectory.failed)
        print(
            f"warning: {summary['n_failed']} of {folder.n_answers} {asked} failed and count as wrong; the first, "
            f"{first.question_id}: {first.error}. --resume asks them again",
            file=sys.stderr,
        )
    if interrupted:
        print(
            f"interrupted: {summary['n_missing']} {asked} are left; repeat the command to continue the run",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    return 1 if summary["n_failed"] == folder.n_answers else 0


if __name__ == "__main__":
    keep_torch_out_of_a_check(sys.argv)
    sys.exit(main())
