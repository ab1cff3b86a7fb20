"""A sentence encoder: texts in, unit vectors out, from any number of threads. Importing this module loads torch.

Source: sentence-transformers; pooling and instruction rules in encoder_folder.py. Nothing is ever downloaded, and code
in a model folder is run only where `trust_remote_code` says so.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from flashrag.errors import UserError
from flashrag.retriever.encoder_folder import own_pooling, weight_files
from flashrag.retriever.model_runner import ModelRunner


class Encoder:
    """The encoder in `folder`; `max_length` is in tokens and capped at the model's own limit."""

    def __init__(
        self, folder: Path, pooling: str, max_length: int, use_fp16: bool, key: str, trust_remote_code: bool = False
    ) -> None:
        load = partial(_load, folder, pooling, key, trust_remote_code)
        self._runner = ModelRunner(load, _unit_vectors, folder, max_length, use_fp16, key)
        self.dimension: int = self._runner.model.get_embedding_dimension()
        self.device_count = self._runner.device_count

    def cut_at(self, max_length: int) -> None:
        """Cut off the texts from here on at so many tokens; not while another thread encodes."""
        self._runner.cut_at(max_length)

    def encode(self, texts: Sequence[str], instruction: str, batch_size: int) -> np.ndarray:
        """float32 unit vectors, (len(texts), dimension), in the order of the texts; an empty text is allowed."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return self._runner.run([instruction + text for text in texts], batch_size)


def _unit_vectors(outputs: dict[str, Any]) -> torch.Tensor:
    return torch.nn.functional.normalize(outputs["sentence_embedding"].float(), dim=1)


def _load(folder: Path, pooling: str, key: str, trust_remote_code: bool, device: str) -> SentenceTransformer:
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    if own_pooling(folder) == pooling and (folder / "modules.json").is_file():
        return SentenceTransformer(str(folder), device=device, **local)
    options: dict[str, Any] = {"model_kwargs": local, "config_kwargs": local, "processor_kwargs": local}
    if pooling == "pooler":  # the model pools by itself
        if not has_pooler(folder):
            raise UserError(
                f"retrieval_pooling_method: 'pooler' was given, but {key} {folder} holds no trained pooler; "
                "use mean or cls"
            )
        output = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
        own = Transformer(str(folder), modality_config=output, module_output_name="sentence_embedding", **options)
        return SentenceTransformer(modules=[own], device=device)
    transformer = Transformer(str(folder), **options)
    pool = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)
    return SentenceTransformer(modules=[transformer, pool], device=device)


def has_pooler(folder: Path) -> bool:
    """Whether the weights hold the layer that `pooler` reads; transformers would fill a missing one at random."""
    return any("pooler" in name for path in weight_files(folder) for name in _weight_names(path))


def _weight_names(path: Path) -> Iterable[str]:
    if path.suffix == ".safetensors":
        with safe_open(path, "numpy") as weights:
            return weights.keys()
    # a torch archive, which holds its names uncompressed
    return ["pooler"] if b"pooler.dense.weight" in path.read_bytes() else []
