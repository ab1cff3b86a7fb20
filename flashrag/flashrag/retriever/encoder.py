"""A sentence encoder: texts in, unit vectors out, from any number of threads. Importing this module loads torch.

Source: sentence-transformers; pooling and instruction rules in encoder_folder.py. Nothing is ever downloaded, and code
in a model folder is run only where `trust_remote_code` says so.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from flashrag.errors import UserError
from flashrag.retriever.encoder_folder import has_pooler, own_pooling
from flashrag.retriever.model_runner import ModelRunner

# The errors that transformers raises for a folder that is damaged, incomplete or of an unknown kind.
LOAD_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, SafetensorError)


class Encoder:
    """The encoder in `folder`; `max_length` is in tokens and capped at the model's own limit."""

    def __init__(
        self, folder: Path, pooling: str, max_length: int, use_fp16: bool, key: str, trust_remote_code: bool = False
    ) -> None:
        if pooling == "pooler" and not has_pooler(folder):
            raise UserError(
                f"retrieval_pooling_method: 'pooler' was given, but {key} {folder} holds no trained pooler; "
                "use mean or cls"
            )

        def load(device: str) -> SentenceTransformer:
            model = _load(folder, pooling, device, trust_remote_code)
            limit = getattr(getattr(model[0], "config", None), "max_position_embeddings", None) or max_length
            model.max_seq_length = min(max_length, limit)
            return model

        try:
            self._runner = ModelRunner(load, _unit_vectors, use_fp16)
        except LOAD_ERRORS as error:
            raise UserError(f"{key}: the encoder in {folder} cannot be loaded ({reason(error)})") from error
        self.dimension: int = self._runner.model.get_embedding_dimension()

    def encode(self, texts: Sequence[str], instruction: str, batch_size: int) -> np.ndarray:
        """float32 unit vectors, (len(texts), dimension), in the order of the texts; an empty text is allowed."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return self._runner.run([instruction + text for text in texts], batch_size)


def reason(error: Exception) -> str:
    """Why a model cannot be loaded, on one line."""
    text = " ".join(str(error).split())
    if "custom code" in text:
        return "it comes with Python code of its own; set trust_remote_code to true if you trust it"
    return f"{text[:300]}; download it again"


def _unit_vectors(outputs: dict[str, Any]) -> torch.Tensor:
    return torch.nn.functional.normalize(outputs["sentence_embedding"].float(), dim=1)


def _load(folder: Path, pooling: str, device: str, trust_remote_code: bool) -> SentenceTransformer:
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    if own_pooling(folder) == pooling and (folder / "modules.json").is_file():
        return SentenceTransformer(str(folder), device=device, **local)
    options: dict[str, Any] = {"model_kwargs": local, "config_kwargs": local, "processor_kwargs": local}
    if pooling == "pooler":  # the model pools by itself
        output = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
        own = Transformer(str(folder), modality_config=output, module_output_name="sentence_embedding", **options)
        return SentenceTransformer(modules=[own], device=device)
    transformer = Transformer(str(folder), **options)
    pool = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)
    return SentenceTransformer(modules=[transformer, pool], device=device)
