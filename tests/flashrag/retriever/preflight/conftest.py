"""A dense retriever's files, small: an encoder of which only the headers are read, an index and a corpus."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import pytest
from safetensors.numpy import save_file

from flashrag.retriever import RetrieverSettings

ROWS, DIMENSION, POSITIONS = 6, 4, 16


def write_corpus(path: Path, rows: int = ROWS, text: str = "a passage") -> Path:
    path.write_text("".join(json.dumps({"id": str(row), "contents": text}) + "\n" for row in range(rows)))
    return path


def write_index(path: Path, rows: int = ROWS, dimension: int = DIMENSION, kind: str = "Flat") -> Path:
    index = faiss.index_factory(dimension, kind, faiss.METRIC_INNER_PRODUCT)
    vectors = np.ones((rows, dimension), dtype=np.float32)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(path))
    return path


def write_encoder(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    values = {"architectures": ["BertModel"], "hidden_size": DIMENSION, "max_position_embeddings": POSITIONS, **config}
    (folder / "config.json").write_text(json.dumps(values))
    save_file({"a": np.zeros((2, 3), dtype=np.float32)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    return folder


class Files(NamedTuple):
    folder: Path
    encoder: Path
    index: Path
    corpus: Path

    def settings(self, **changes: Any) -> RetrieverSettings:
        values = {
            "retrieval_method": "e5",
            "retrieval_model_path": str(self.encoder),
            "index_path": self.index,
            "corpus_path": self.corpus,
            "retrieval_query_max_length": POSITIONS,
        }
        return RetrieverSettings.model_validate({**values, **changes})

    def listed(self) -> set[Path]:
        return set(self.folder.rglob("*"))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "ein Ordner ½"
    folder.mkdir()
    encoder = write_encoder(folder / "encoder")
    return Files(folder, encoder, write_index(folder / "e5.index"), write_corpus(folder / "corpus.jsonl"))
