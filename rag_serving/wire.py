"""The server's answers: their models for the OpenAPI document, and what is written as their JSON.

Pure: no I/O, no retriever. Does not cover: requests (routes.py).
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from flashrag.document import Document, Hit


class DocumentOut(BaseModel):
    id: str
    contents: str


class ScoredDocumentOut(BaseModel):
    document: DocumentOut
    score: float


class RetrieveOut(BaseModel):
    result: list[list[ScoredDocumentOut]] | list[list[DocumentOut]]


class QueriesOut(BaseModel):
    queries: list[str]
    answers: list[list[str]]


class RetrieversOut(BaseModel):
    total: int
    available: int


class HealthOut(BaseModel):
    status: str
    retrievers: RetrieversOut
    retrieval_method: str
    documents: int


class NotReadyOut(BaseModel):
    status: str


class ErrorOut(BaseModel):
    detail: str


SearchOut = list[DocumentOut] | tuple[list[DocumentOut], list[float]]
BatchSearchOut = list[list[DocumentOut]] | tuple[list[list[DocumentOut]], list[list[float]]]


def document_json(document: Document) -> dict[str, str]:
    return {"id": document.id, "contents": document.contents}  # orjson takes three times as long over the dataclass


def search_json(hits: Sequence[Hit], return_score: bool) -> list[Any]:
    """`[doc, …]`, or `[[doc, …], [score, …]]`."""
    documents = [document_json(hit.document) for hit in hits]
    return [documents, [hit.score for hit in hits]] if return_score else documents


def batch_search_json(ranked: Sequence[Sequence[Hit]], return_score: bool) -> list[Any]:
    """`[[doc, …], …]`, or `[[[doc, …], …], [[score, …], …]]`: two lists with one entry per query."""
    documents = [[document_json(hit.document) for hit in hits] for hits in ranked]
    return [documents, [[hit.score for hit in hits] for hits in ranked]] if return_score else documents


def retrieve_json(ranked: Sequence[Sequence[Hit]], return_scores: bool) -> dict[str, Any]:
    if not return_scores:
        return {"result": batch_search_json(ranked, return_score=False)}
    scored = [[{"document": document_json(hit.document), "score": hit.score} for hit in hits] for hits in ranked]
    return {"result": scored}


def queries_json(queries: Sequence[str], ranked: Sequence[Sequence[Hit]]) -> dict[str, Any]:
    return {"queries": queries, "answers": [[hit.document.contents for hit in hits] for hits in ranked]}
