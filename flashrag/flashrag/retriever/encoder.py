"""A sentence encoder: texts in, unit vectors out. Importing this module loads torch.

Source: sentence-transformers; pooling and instruction rules in model_folder.py. Custom code in a model folder is never
run (`trust_remote_code` stays off), and nothing is ever downloaded.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Both are read when the libraries below are imported.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its own threads fight with ours and with faiss's
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from flashrag.errors import UserError
from flashrag.retriever.model_folder import own_pooling


class Encoder:
    """The encoder in `folder`; `max_length` is in tokens and capped by what the model can take."""

    def __init__(self, folder: Path, pooling: str, max_length: int, use_fp16: bool, key: str) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._model = _load(folder, pooling, self.device)
        except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{key}: the encoder in {folder} cannot be loaded ({reason}); download it again") from error
        limit = getattr(self._model[0].config, "max_position_embeddings", None) or max_length
        self._model.max_seq_length = min(max_length, limit)
        if use_fp16 and self.device == "cuda":  # on a CPU half precision is slower and less exact
            self._model.half()
        self._model.eval()
        # Fast tokenizers raise "Already borrowed" when two threads set their truncation at once.
        self._lock = threading.Lock()

    @property
    def dimension(self) -> int:
        dimension = self._model.get_embedding_dimension()
        assert dimension is not None, "the model does not say how long its vectors are"
        return dimension

    def encode(self, texts: Sequence[str], instruction: str, batch_size: int) -> np.ndarray:
        """float32 unit vectors, (len(texts), dimension), in the order of the texts; an empty text is allowed."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        with self._lock, torch.inference_mode():
            vectors = self._model.encode(
                [instruction + text for text in texts],
                prompt="",
                batch_size=batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        return np.ascontiguousarray(vectors, dtype=np.float32)


def _load(folder: Path, pooling: str, device: str) -> SentenceTransformer:
    if own_pooling(folder) == pooling and (folder / "modules.json").is_file():
        return SentenceTransformer(str(folder), device=device, local_files_only=True, trust_remote_code=False)
    transformer = Transformer(
        str(folder),
        model_kwargs={"local_files_only": True},
        config_kwargs={"local_files_only": True},
        processor_kwargs={"local_files_only": True},
    )
    pool = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)
    return SentenceTransformer(modules=[transformer, pool], device=device)
