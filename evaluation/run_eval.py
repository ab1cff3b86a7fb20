"""Evaluate a served model with search: `python evaluation/run_eval.py --config_path … --method_name research …`.

Checks the input, runs the pipeline over the questions, writes predictions and scores into a folder of their own.
Exit codes: 0 done, 1 not one question could be answered, 2 unusable input, 130 interrupted.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside evaluation
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evaluation.eval_settings import EvalSettings, load_settings, parse_command_line
from evaluation.report import (
    format_table,
    prediction_record,
    summarize,
    write_json,
    write_predictions,
    write_yaml,
)
from flashrag.client import RetrievalClient, check_server
from flashrag.dataset import Question, load_questions
from flashrag.errors import UserError, exit_on_user_error
from flashrag.generator.loading import load_generator
from flashrag.pipeline import Outcome, ReSearchPipeline
from flashrag.retriever import Assets, Retriever, RetrieverSettings, check_assets, load_retriever_from


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    settings = load_settings(parse_command_line(argv))
    questions = load_questions(settings, settings.split)
    assets = check_retrieval(settings)
    generator = load_generator(settings)
    retriever = load_retriever(settings, assets)
    pipeline = ReSearchPipeline(settings, retriever, generator)
    folder = make_run_folder(settings)
    print(f"{len(questions)} questions of {settings.dataset_name}/{settings.split} -> {folder}", flush=True)
    started = time.perf_counter()
    try:
        outcomes = asyncio.run(run_pipeline(pipeline, questions, (generator, retriever)))
    except BaseException:  # Ctrl-C included: nothing is written before the end
        folder.rmdir()
        raise
    summary = {
        **summarize(outcomes, settings.metrics),
        "seconds": round(time.perf_counter() - started, 2),
        "method": settings.method_name,
        "dataset": settings.dataset_name,
        "split": settings.split,
        "served_model": generator.served_name,
        "token_ids": generator.token_id_origin,
    }
    save(settings, folder, outcomes, summary)
    report(settings, folder, outcomes, summary)
    return 1 if summary["n_failed"] == len(outcomes) else 0


def check_retrieval(settings: EvalSettings) -> Assets | None:
    """The files of the local retriever, None where a server searches; `UserError` unless they, or it, are there."""
    if not settings.use_remote_retriever:
        return check_assets(RetrieverSettings(**settings.retriever, retrieval_topk=settings.retrieval_topk))
    assert settings.remote_retriever_url is not None, "checked by EvalSettings"
    check_server(settings.remote_retriever_url, key="remote_retriever_url")
    return None


def load_retriever(settings: EvalSettings, assets: Assets | None) -> RetrievalClient | Retriever:
    if assets is not None:
        return load_retriever_from(assets)
    assert settings.remote_retriever_url is not None, "checked by EvalSettings"
    return RetrievalClient(settings.remote_retriever_url, top_n=settings.retrieval_topk)


def make_run_folder(settings: EvalSettings) -> Path:
    """A new folder for this run; raises `UserError` when it cannot be made or holds an earlier run."""
    label = settings.save_note or time.strftime("%Y%m%d-%H%M%S")
    folder = settings.save_dir / f"{settings.dataset_name}_{label}"
    try:
        folder.mkdir(parents=True, exist_ok=False)
    except FileExistsError as error:
        raise UserError(f"{folder} exists already; give another save_note, or remove it") from error
    except OSError as error:
        raise UserError(f"save_dir={settings.save_dir}: {folder} cannot be made ({error})") from error
    return folder


async def run_pipeline(
    pipeline: ReSearchPipeline, questions: Sequence[Question], connections: Sequence[Any]
) -> list[Outcome]:
    """Answer every question, with a progress bar that shows the exact match so far; closes the connections."""
    from tqdm import tqdm

    exact_matches = 0.0
    with tqdm(total=len(questions), unit="question") as bar:

        def show(outcome: Outcome) -> None:
            nonlocal exact_matches
            exact_matches += outcome.score.em
            bar.update()
            bar.set_postfix(em=f"{exact_matches / bar.n:.3f}", refresh=False)

        try:
            return await pipeline.run(questions, show)
        finally:
            for connection in connections:
                if hasattr(connection, "aclose"):  # a local retriever has nothing to close
                    await connection.aclose()


def save(settings: EvalSettings, folder: Path, outcomes: Sequence[Outcome], summary: dict[str, Any]) -> None:
    """Write the files of a run, its metrics last: where they are, the run is whole."""
    config = settings.model_dump(mode="json", exclude={"retriever"})
    write_yaml(folder / "config.yaml", {**config, **settings.retriever})
    with_trajectory = settings.save_intermediate_data
    records = [prediction_record(outcome, with_trajectory=with_trajectory) for outcome in outcomes]
    write_predictions(folder / "predictions.jsonl", records)
    if settings.save_metric_score:
        write_json(folder / "metrics.json", summary)


def report(settings: EvalSettings, folder: Path, outcomes: Sequence[Outcome], summary: dict[str, Any]) -> None:
    print(format_table(f"{settings.method_name} on {settings.dataset_name}/{settings.split}", summary))
    if summary["token_ids"] == "re-tokenised":
        print("note: the model server returns text only; its responses were encoded again with the local tokenizer")
    failures = [outcome for outcome in outcomes if outcome.answer.failure]
    if failures:
        first = failures[0]
        print(
            f"warning: {len(failures)} of {len(outcomes)} questions failed and count as wrong; "
            f"the first, {first.question.id}: {first.answer.failure}",
            file=sys.stderr,
        )
    print(f"written to {folder}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)
