"""Every method over one set of questions, on the same servers, as one report: what `docs/evaluation.md` quotes.

    python scripts/bench/methods.py --demo_dir outputs/demo                        the demo's dev set
    python scripts/bench/methods.py --demo_dir outputs/demo --models base trained --methods research naive …
    python scripts/bench/methods.py --demo_dir outputs/demo --questions Q.jsonl --serving_config S.yaml

Starts the servers, runs evaluation/run_eval.py once for each model and method, then its report. Runs that are complete
are not repeated, so the same command goes on where it was stopped.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a script: imports start at the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flashrag.errors import ReSearchError, UserError, exit_on_user_error
from flashrag.pipeline import METHODS
from flashrag.system.arguments import CommandParser
from flashrag.system.model_server import Engine, ModelServerOptions, model_server
from scripts.bench.demo import add_demo_dir, demo_server_config, trained_model
from scripts.bench.server_process import ROOT, our_server, write_config

RUN_EVAL = ROOT / "evaluation" / "run_eval.py"
BASE_MODEL = ROOT / "training" / "demo" / "base_model"
MODEL_TOKENS = 2048  # all that the demo's model takes; the examples in some methods' prompts need a third of it
# As the demo's model was trained, but with room for real passages: two of them for each search.
SETTINGS = {
    "retrieval_topk": 2,
    "max_result_tokens": 640,
    "max_response_tokens": 384,
    "max_searches": 4,
    "generator_max_input_len": MODEL_TOKENS,
    "metrics": "em,f1,acc,retrieval_recall,support_coverage",
    "metric_setting.retrieval_recall_topk": 2,
}


def evaluate(arguments: argparse.Namespace, method: str, note: str, model: Path, urls: dict[str, str]) -> Path:
    """One run of run_eval.py; returns its folder. Raises `ReSearchError` where not one question was answered."""
    questions = arguments.questions
    where = ["--dataset_name", "demo", "--split", "dev", "--data_dir", arguments.demo_dir / "data"]
    if questions:
        where = ["--dataset_name", questions]
    keys = {**SETTINGS, **urls, "generator_model": model, "save_dir": arguments.out, "save_note": note}
    flags = [part for key, value in keys.items() for part in (f"--{key}", value)]
    command = [sys.executable, RUN_EVAL, "--config_path", ROOT / "evaluation" / "eval_config.yaml"]
    command += ["--method_name", method, *where, *flags]
    print(f"== {method} ({note})", flush=True)
    done = subprocess.run([str(part) for part in command], check=False)
    if done.returncode not in (0, 1):
        raise ReSearchError(f"{method} ended with exit code {done.returncode}")
    label = questions.stem if questions else "demo_dev"
    return arguments.out / f"{label}_{method}_{note}"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description="Every method over one set of questions.")
    add_demo_dir(parser)
    add = parser.add_argument
    add("--models", nargs="+", choices=["base", "trained"], default=["trained"], help="default: trained")
    add("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS), help="default: all")
    add("--questions", type=Path, help="a .jsonl of other questions; needs --serving_config")
    add("--serving_config", type=Path, help="a configuration of the retrieval server; default: the demo's corpus")
    add("--out", type=Path, default=Path("outputs/methods"), help="default %(default)s")
    arguments = parser.parse_args(argv)
    if (arguments.questions is None) != (arguments.serving_config is None):
        raise UserError("--questions and --serving_config belong together: other questions need another corpus")
    return arguments


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_args(argv)
    models = {"base": BASE_MODEL, "trained": trained_model(arguments.demo_dir)}
    logs = arguments.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    config = arguments.serving_config or write_config(logs, demo_server_config(arguments.demo_dir))
    folders = []
    with our_server(config, 1, logs) as retrieval:
        for note in arguments.models:
            options = ModelServerOptions(
                models[note], Engine.VLLM, context_length=MODEL_TOKENS, log_path=logs / f"model_server_{note}.log"
            )
            with model_server(options) as (model_url, _):
                urls = {"remote_retriever_url": retrieval.url, "sgl_remote_url": model_url}
                for method in arguments.methods:
                    folders.append(evaluate(arguments, method, note, models[note], urls))
    report = [sys.executable, str(RUN_EVAL), "report", *map(str, folders), "--out", str(arguments.out / "report")]
    return subprocess.run(report, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
