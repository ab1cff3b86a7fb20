"""Every method over one set of questions, on the same servers, as one report: the tables of docs/benchmarks.md.

Starts the servers, runs evaluation/run_eval.py once for each model and method, then its report. Runs that are complete
are not repeated, so the same command goes on where it was stopped.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: imports start at the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from evaluation.run_eval import main as evaluation
from flashrag.config import read_yaml_mapping
from flashrag.errors import ReSearchError, UserError, exit_on_user_error
from flashrag.pipeline import METHODS
from flashrag.system.arguments import flag, parse_options
from flashrag.system.engine import Engine, ModelServerOptions
from flashrag.system.model_server import model_server
from scripts.bench.inputs import DemoOptions
from scripts.bench.servers import ROOT, our_server

BASE_MODEL = ROOT / "training" / "demo" / "base_model"
CONFIG = Path(__file__).with_suffix(".yaml")
MODEL_TOKENS = read_yaml_mapping(CONFIG)["generator_max_input_len"]
EVERY = f"methods to evaluate: {', '.join(METHODS)} (default: all)"


@dataclass(frozen=True)
class MethodsOptions:
    """Evaluate every method over one set of questions, and write one report."""

    demo_dir: Path = flag("folder that bash training/run.sh left", Path("outputs/demo"))
    models: Sequence[str] = flag("demo's models to evaluate", ("trained",), choices=("base", "trained"))
    methods: Sequence[str] = flag(EVERY, tuple(METHODS), choices=sorted(METHODS), metavar="METHOD")
    questions: Path | None = flag("jsonl of others, with --serving_config (default: the demo's dev set)", None)
    serving_config: Path | None = flag("yaml of the server, with --questions (default: the demo's corpus)", None)
    out: Path = flag("folder of the runs and of the report", Path("outputs/methods"))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(MethodsOptions, "python scripts/bench/methods.py", argv)
    if (options.questions is None) != (options.serving_config is None):
        raise UserError("--questions and --serving_config belong together: other questions need another corpus")
    demo, logs, folders = DemoOptions(demo_dir=options.demo_dir), options.out / "logs", []
    models = {"base": BASE_MODEL, "trained": demo.model}
    asked = {"dataset_name": "demo", "split": "dev", "data_dir": options.demo_dir / "data"}
    asked = {"dataset_name": options.questions} if options.questions else asked
    label = options.questions.stem if options.questions else "demo_dev"
    with our_server(options.serving_config or demo.serving_config, logs) as retrieval:
        for note in options.models:
            log_path = logs / f"model_server_{note}.log"
            server = ModelServerOptions(models[note], Engine.VLLM, context_length=MODEL_TOKENS, log_path=log_path)
            with model_server(server) as (model_url, _):
                urls = {"remote_retriever_url": retrieval.url, "sgl_remote_url": model_url}
                saved = {"generator_model": models[note], "save_dir": options.out, "save_note": note}
                for method in options.methods:
                    print(f"== {method} ({note})", flush=True)
                    keys = {"config_path": CONFIG, "method_name": method, **asked, **urls, **saved}
                    exit_code = evaluation([str(part) for key, value in keys.items() for part in (f"--{key}", value)])
                    if exit_code not in (0, 1):  # 1: not one question was answered
                        raise ReSearchError(f"{method} ended with exit code {exit_code}")
                    folders.append(str(options.out / f"{label}_{method}_{note}"))
    return evaluation(["report", *folders, "--out", str(options.out / "report")])


if __name__ == "__main__":
    sys.exit(main())
