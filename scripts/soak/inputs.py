"""Try to break the checks before a start: `python scripts/soak/inputs.py`

Changes one thing (mutations.py) in the good inputs of a command, 1,000 times, and asks its `--check`: no traceback, no
exit code but 0 and 2, an error in words with each 2. Some of the cases that a check accepts are then run and must work.
Checks run in forks of this process, which has imported everything; `start_s` is what a whole `--check` of the unchanged
inputs takes. Needs no network. Prints one line of JSON last. Exit codes: 0 survived, 1 not, 2 for a bad input.
"""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # run as a script: imports start at the repository root, not inside scripts/soak
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import yaml
from tqdm import tqdm

from flashrag.config import read_yaml_mapping
from flashrag.errors import EXIT_USER_ERROR, ReSearchError, exit_on_user_error
from flashrag.system.arguments import flag, in_range, parse_options
from flashrag.system.engine import Engine, ModelServerOptions
from flashrag.system.model_server import model_server
from flashrag.system.processes import run_guarded
from scripts.bench.servers import ROOT, our_server
from scripts.soak.mutations import MUTATIONS, Case, NothingToChange

BASE_MODEL = ROOT / "training" / "demo" / "base_model"
MODEL_TOKENS = 1024
EVAL_CONFIG = ROOT / "evaluation" / "eval_config.yaml"
EVAL_LIMITS = {
    "retrieval_topk": 2, "max_result_tokens": 100,
    "generator_max_input_len": MODEL_TOKENS, "max_response_tokens": MODEL_TOKENS // 2,
}  # fmt: skip
CHECK_TIMEOUT_S, RUN_TIMEOUT_S = 60, 300
PROGRAMS = {
    "training": "training.launch",
    "evaluation": "evaluation.run_eval",
    "serving": "rag_serving.serving",
    "index": "flashrag.retriever.index_builder",
    "model server": "flashrag.system.model_server",
    "preparation": "training.data_preprocess_hpqa",
    "mix": "training.data_preprocess",
    "conversion": "scripts.convert_data",
}
RUN = (
    "evaluation",
    "index",
    "preparation",
    "mix",
    "conversion",
)  # run where the check accepts; the others take minutes or stay
GOOD_ROW = {"question": "Who led the Zhou?", "answer": "King Wu"}


@dataclass(frozen=True, kw_only=True)
class InputsOptions:
    """Try to break the checks before a start."""

    cases: int = flag("number of changed inputs", 1000, type=in_range(int, 1))
    runs: int = flag("number of accepted cases that are then run", 60, type=in_range(int, 0))
    seed: int = flag("seed of the changes", 1)


class Outcome(NamedTuple):
    """`code` is None for a check that was still running after `CHECK_TIMEOUT_S`."""

    code: int | None
    seconds: float
    output: str


@dataclass
class Figures:
    """What the soak found so far."""

    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ran: int = 0
    problems: list[str] = field(default_factory=list)


def make_good(folder: Path) -> None:
    """The good inputs of every command."""
    folder.mkdir(parents=True)
    original = [{"_id": f"q{n}", "question": f"{GOOD_ROW['question']} ({n})", "answer": "King Wu"} for n in range(12)]
    (folder / "hotpot.json").write_text(json.dumps(original))
    questions = [{"id": row["_id"], "question": row["question"], "golden_answers": [row["answer"]]} for row in original]
    passages = [{"id": str(n), "contents": f'"Zhou {n}"\nKing Wu led the Zhou in {n}.'} for n in range(20)]
    (folder / "sets" / "zhou").mkdir(parents=True)
    for name, rows in {"questions": questions[:4], "corpus": passages, "sets/zhou/train": questions}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(BASE_MODEL, folder / "model")
    (folder / "serving.yaml").write_text(yaml.safe_dump(served(Path())))
    for command in ("index", "preparation"):
        done = run_whole(Case(command, folder, commands("", "")[command][:-1]))
        if done.code != 0:
            raise ReSearchError(f"the good inputs cannot be made: {done.output[-2000:]}")


def served(folder: Path) -> dict[str, str]:
    """The server's configuration over the good inputs in a folder."""
    paths = {"index_path": str(folder / "indexes" / "bm25"), "corpus_path": str(folder / "corpus.jsonl")}
    return {"retrieval_method": "bm25", **paths}


def commands(search_url: str, model_url: str) -> dict[str, list[str]]:
    """The arguments of each command over the good inputs; the last is `--check`."""
    tokens = str(MODEL_TOKENS // 2)
    texts = {
        "training": f"--config_name cpu --actor_model_path model --search_url {search_url} --save_path out "
        "--train_data_path train.parquet --dev_data_path test.parquet --train_batch_size 4 --ppo_mini_batch_size 4 "
        f"--max_prompt_length 400 --max_response_length {tokens}",
        "evaluation": f"--config_path eval.yaml --method_name research --dataset_name questions.jsonl --save_dir out "
        f"--remote_retriever_url {search_url} --sgl_remote_url {model_url} --generator_model model",
        "serving": "--config serving.yaml --port 0",
        "index": "--retrieval_method bm25 --corpus_path corpus.jsonl --save_dir indexes",
        "model server": "--model_path model --engine vllm --port 0 --log_path out/server.log",
        "preparation": "--train_data_path hotpot.json --dev_data_path hotpot.json --output_dir .",
        "mix": "--train zhou:1.5 --hold_out 2 --max_answer_words 5 --data_dir sets --output_dir mix",
        "conversion": "hotpotqa hotpot.json --split dev --data_dir data",
    }
    return {name: [*text.split(), "--check"] for name, text in texts.items()}


def check(case: Case) -> Outcome:
    """The command's `--check` in a fork of this process."""
    output, started = case.folder / "output.txt", time.monotonic()
    if (child := os.fork()) == 0:
        _check_and_exit(case, output)
    while time.monotonic() < started + CHECK_TIMEOUT_S:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            seconds = time.monotonic() - started
            return Outcome(os.waitstatus_to_exitcode(status), seconds, output.read_text(errors="replace"))
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return Outcome(None, time.monotonic() - started, output.read_text(errors="replace"))


def _check_and_exit(case: Case, output: Path) -> None:
    """Never returns, whatever the command does."""
    code = 70
    try:
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.update(case.environment)
        os.chdir(case.folder)
        code = importlib.import_module(PROGRAMS[case.command]).main(list(case.argv)) or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 70
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_whole(case: Case) -> Outcome:
    """The command in a process of its own, as it is typed."""
    started, command = time.monotonic(), [sys.executable, "-m", PROGRAMS[case.command], *case.argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **case.environment}
    try:
        done = subprocess.run(
            command, cwd=case.folder, env=environment, capture_output=True, stdin=subprocess.DEVNULL,
            timeout=RUN_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(None, RUN_TIMEOUT_S, "")
    return Outcome(done.returncode, time.monotonic() - started, (done.stdout + done.stderr).decode(errors="replace"))


def problem(outcome: Outcome) -> str | None:
    """What is wrong with a check's outcome, None where nothing is."""
    if outcome.code is None:
        return f"still running after {CHECK_TIMEOUT_S} s"
    if "Traceback (most recent call last)" in outcome.output:
        return f"a traceback: {outcome.output.strip().splitlines()[-1][:200]}"
    if outcome.code not in (0, EXIT_USER_ERROR):
        return f"exit code {outcome.code}: {outcome.output[-200:]!r}"
    if outcome.code == EXIT_USER_ERROR and "error: " not in outcome.output:
        return f"exit code 2 without an error: {outcome.output[-200:]!r}"
    return None


def soak(good: Path, arguments: dict[str, list[str]], options: InputsOptions) -> Figures:
    figures, rng = Figures(), random.Random(options.seed)
    for number in tqdm(range(options.cases), unit=" cases", mininterval=1.0 if sys.stderr.isatty() else 30.0):
        command = rng.choice(sorted(PROGRAMS))
        with tempfile.TemporaryDirectory(prefix="inputs-") as folder:
            case = Case(command, Path(folder) / "case", list(arguments[command]))
            shutil.copytree(good, case.folder, copy_function=os.link)
            try:
                change = rng.choice(MUTATIONS)(case, rng)
            except NothingToChange:
                change = "nothing"
            outcome = check(case)
            figures.seconds[command].append(outcome.seconds)
            (figures.accepted if outcome.code == 0 else figures.refused)[command] += 1
            wrong = problem(outcome)
            if wrong is None and outcome.code == 0 and command in RUN and figures.ran < options.runs:
                figures.ran += 1
                case.argv = [word for word in case.argv if word != "--check"]
                if (ran := run_whole(case)).code != 0:
                    wrong = f"accepted, but then exit code {ran.code}: {ran.output[-300:]!r}"
            if wrong:
                figures.problems.append(f"case {number}: {command}: {change}: {wrong}")
                print(f"violation: {figures.problems[-1]}", flush=True)
    return figures


def _soak(options: InputsOptions, work: Path) -> None:
    good = work / "good"
    make_good(good)
    server = ModelServerOptions(good / "model", Engine.VLLM, context_length=MODEL_TOKENS, log_path=work / "model.log")
    (work / "serving.yaml").write_text(yaml.safe_dump(served(good)))
    with our_server(work / "serving.yaml", work) as search, model_server(server) as (model_url, _):
        (good / "eval.yaml").write_text(yaml.safe_dump({**read_yaml_mapping(EVAL_CONFIG), **EVAL_LIMITS}))
        arguments = commands(search.url, model_url)
        whole = {name: run_whole(Case(name, good, argv)) for name, argv in arguments.items()}
        if bad := [f"{name}: {outcome.output[-1000:]}" for name, outcome in whole.items() if outcome.code != 0]:
            raise ReSearchError("the checks refuse the good inputs: " + "\n".join(bad))
        sys.modules["torch"] = None  # pyrefly: ignore[unsupported-operation]  (as in a check that is typed)
        for module in PROGRAMS.values():
            importlib.import_module(module)
        figures = soak(good, arguments, options)
    seconds: list[float] = [value for values in figures.seconds.values() for value in values]
    by_command: dict[str, Any] = {
        name: {
            "refused": figures.refused[name],
            "accepted": figures.accepted[name],
            "median_s": round(float(np.median(figures.seconds[name] or [0.0])), 3),
            "start_s": round(whole[name].seconds, 2),
        }
        for name in PROGRAMS
    }
    median, slowest = round(float(np.median(seconds)), 3), round(max(seconds), 2)
    found = {"cases": options.cases, "violations": len(figures.problems), "ran": figures.ran}
    print(json.dumps({**found, "median_s": median, "slowest_s": slowest, "commands": by_command}), flush=True)
    if figures.problems:
        raise ReSearchError(f"{len(figures.problems)} violations")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(InputsOptions, "python scripts/soak/inputs.py", argv)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        run_guarded(lambda: _soak(options, Path(folder)), "start it again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
