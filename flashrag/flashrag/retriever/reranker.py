"""Reranking: a cross-encoder reads query and passage together and scores the candidates of any retriever again.

It is more exact than the retriever that finds the candidates, and slower by orders of magnitude. A score is the logit
after the activation that the model's folder names. Source: sentence-transformers' CrossEncoder. Importing this module
loads torch.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder

from flashrag.document import Hit
from flashrag.errors import UserError
from flashrag.retriever.base import Retriever
from flashrag.retriever.model_runner import ModelRunner


class RerankedRetriever(Retriever):
    """Ranks the first `candidates` documents of `retriever` with the cross-encoder.

    If a caller asks for more documents, it scores that number of candidates.
    """

    def __init__(self, retriever: Retriever, scorer: "PairScorer", candidates: int, topk: int) -> None:
        self.method = f"{retriever.method}+rerank"
        self.corpus = retriever.corpus
        self.topk = topk
        self._retriever = retriever
        self._scorer = scorer
        self._candidates = candidates

    def rank(self, queries: Sequence[str], num: int) -> list[list[Hit]]:
        found = self._retriever.rank(queries, max(num, self._candidates))
        pairs = [(query, hit.document.contents) for query, hits in zip(queries, found, strict=True) for hit in hits]
        scores = iter(self._scorer.score(pairs))
        scored = [[Hit(hit.document, next(scores)) for hit in hits] for hits in found]
        # A stable sort: equal scores stay in the order of the first retriever.
        return [sorted(hits, key=lambda hit: -hit.score)[:num] for hits in scored]


class PairScorer:
    """The cross-encoder in `folder`; `max_length` is in tokens of query and passage together."""

    def __init__(
        self, folder: Path, max_length: int, batch_size: int, use_fp16: bool, trust_remote_code: bool = False
    ) -> None:
        load = partial(CrossEncoder, str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
        self._runner = ModelRunner(load, self._scores, folder, max_length, use_fp16, "rerank_model_path")
        self._batch_size = batch_size
        if (labels := self._runner.model.num_labels) != 1:
            raise UserError(
                f"rerank_model_path: the model in {folder} gives {labels} scores to a pair, expected one; "
                "give a cross-encoder that was trained to rank"
            )

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """A score for each query and passage, in their order; higher is better."""
        if not pairs:
            return []
        return self._runner.run(pairs, self._batch_size).tolist()

    def _scores(self, outputs: dict[str, Any]) -> torch.Tensor:
        return self._runner.model.activation_fn(outputs["scores"].float()).reshape(-1)
