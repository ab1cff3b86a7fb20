"""Every method over one set of questions, on the same servers, as one report: the tables of docs/benchmarks.md.

Starts the servers, runs evaluation/run_eval.py once for each model, kind of prompt and method, then its report. Runs
that are complete are not repeated, so the same command goes on where it was stopped.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

if __name__ == "__main__":  # run as a script: imports start at the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from evaluation.command_line import load_settings, parse_command_line
from evaluation.preflight import EvalFacts
from evaluation.run_eval import main as evaluation
from flashrag.config import read_yaml_mapping
from flashrag.errors import ReSearchError, UserError, exit_on_user_error
from flashrag.pipeline import METHODS
from flashrag.system.arguments import CommandParser, flag
from flashrag.system.engine import PRECISIONS, Engine, ModelServerOptions
from flashrag.system.model_server import model_server
from scripts.bench.inputs import DemoOptions
from scripts.bench.servers import ROOT, our_server

BASE_MODEL = ROOT / "training" / "demo" / "base_model"
CONFIG = Path(__file__).with_suffix(".yaml")
MODEL_TOKENS = read_yaml_mapping(CONFIG)["generator_max_input_len"]
EVERY = f"methods to evaluate: {', '.join(METHODS)} (default: all)"
MODELS = "models to evaluate: base and trained are the demo's, others are NAME=FOLDER"
PROMPTS = ("plain", "chat")
NOT_STARTED = dict.fromkeys(("remote_retriever_url", "sgl_remote_url"), "http://127.0.0.1:1")


@dataclass(frozen=True)
class MethodsOptions:
    """Evaluate every method over one set of questions, and write one report.

    Other flags of evaluation/run_eval.py can follow; they hold for every run.
    """

    demo_dir: Path = flag("folder that bash training/run.sh left", Path("outputs/demo"))
    models: Sequence[str] = flag(MODELS, ("trained",), metavar="MODEL")
    prompts: Sequence[str] = flag("plain: as they are; chat: by the model's template", ("plain",), choices=PROMPTS)
    dtype: str | None = flag("precision of the models (default: float32 on a CPU)", None, choices=PRECISIONS)
    methods: Sequence[str] = flag(EVERY, tuple(METHODS), choices=sorted(METHODS), metavar="METHOD")
    questions: Path | None = flag("file of others, with --serving_config (default: the demo's dev set)", None)
    serving_config: Path | None = flag("yaml of the server, with --questions (default: the demo's corpus)", None)
    out: Path = flag("folder of the runs and of the report", Path("outputs/methods"))


def model_folders(options: MethodsOptions) -> dict[str, Path]:
    """The folder of each model, by its name; raises `UserError` where there is none."""
    demo = DemoOptions(demo_dir=options.demo_dir)
    found = {}
    for model in options.models:
        name, is_folder, folder = model.partition("=")
        if is_folder:
            found[name] = Path(folder)
        elif model in ("base", "trained"):
            found[model] = BASE_MODEL if model == "base" else demo.model
        else:
            raise UserError(f"--models {model}: expected base, trained or NAME=FOLDER")
    return found


@contextmanager
def served(options: MethodsOptions, name: str, folder: Path) -> Iterator[str]:
    """The URL of a server of the model for the length of the block."""
    log_path = options.out / "logs" / f"model_server_{name}.log"
    server = ModelServerOptions(
        folder, Engine.VLLM, context_length=MODEL_TOKENS, dtype=options.dtype, log_path=log_path
    )
    with model_server(server) as (url, _):
        yield url


@dataclass(frozen=True)
class Asking:
    """The methods that one model answers by one kind of prompt, and the keys of their evaluations."""

    model: str
    folder: Path
    settings: Mapping[str, object]
    methods: Sequence[str]


def flags_of(method: str, settings: Mapping[str, object], given: Sequence[str]) -> list[str]:
    """The command line of one evaluation; `given` are the flags that the user added."""
    keys = {"config_path": CONFIG, "method_name": method, **settings}
    return [*(str(part) for key, value in keys.items() for part in (f"--{key}", value)), *given]


def runnable(methods: Sequence[str], settings: Mapping[str, object], given: Sequence[str]) -> Iterator[str]:
    """The methods that take this model, its prompt and these questions; of the others it is printed why not.

    Raises `UserError` for settings or questions that cannot be read.
    """
    for method in methods:
        facts = EvalFacts(parse_command_line(flags_of(method, {**settings, **NOT_STARTED}, given)))
        _ = facts.questions
        try:
            _ = facts.pipeline  # prepared, with stand-ins for the servers
        except UserError as reason:
            print(f"== {method} ({settings['save_note']}) is left out: {reason}", flush=True)
        else:
            yield method


def planned(options: MethodsOptions, given: Sequence[str]) -> list[Asking]:
    """What will be evaluated, before a server starts; raises `UserError` if it is nothing."""
    asked = {"dataset_name": "demo", "split": "dev", "data_dir": options.demo_dir / "data"}
    asked = {"dataset_name": options.questions} if options.questions else asked
    found = []
    for name, folder in model_folders(options).items():
        for prompt in options.prompts:
            settings = {
                **asked,
                "generator_model": folder,
                "save_dir": options.out,
                "save_note": name if prompt == "plain" else f"{name}_chat",
                "apply_chat": str(prompt == "chat").lower(),
            }
            if methods := list(runnable(options.methods, settings, given)):
                found.append(Asking(name, folder, settings, methods))
    if not found:
        raise UserError("every method is left out, for the reasons above")
    return found


def evaluate(asking: Asking, served_at: Mapping[str, object], given: Sequence[str]) -> Iterator[Path]:
    """Run each method; yields the folders of the runs."""
    for method in asking.methods:
        print(f"== {method} ({asking.settings['save_note']})", flush=True)
        flags = flags_of(method, {**asking.settings, **served_at}, given)
        exit_code = evaluation(flags)
        if exit_code not in (0, 1):  # 1: not one question was answered
            raise ReSearchError(f"{method} ended with exit code {exit_code}")
        yield load_settings(parse_command_line(flags)).run_folder


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="python scripts/bench/methods.py", description=MethodsOptions.__doc__)
    parser.add_fields(MethodsOptions)
    values, given = parser.parse_known_args(argv)
    options = MethodsOptions(**vars(values))
    if (options.questions is None) != (options.serving_config is None):
        raise UserError("--questions and --serving_config belong together: other questions need another corpus")
    plan, folders = planned(options, given), list[Path]()
    config = options.serving_config or DemoOptions(demo_dir=options.demo_dir).serving_config
    with our_server(config, options.out / "logs") as retrieval:
        for (name, folder), askings in groupby(plan, lambda asking: (asking.model, asking.folder)):
            with served(options, name, folder) as model_url:
                served_at = {"remote_retriever_url": retrieval.url, "sgl_remote_url": model_url}
                for asking in askings:
                    folders += evaluate(asking, served_at, given)
    return evaluation(["report", *map(str, folders), "--out", str(options.out / "report")])


if __name__ == "__main__":
    sys.exit(main())
