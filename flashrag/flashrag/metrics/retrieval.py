"""Retrieval metrics of a question: did a search find the answer, and the documents that support it?

A method may search any number of times; its best search counts, or all searches together. A metric is None for a
question that cannot be judged (yes/no answers; no supporting document is named), so that the mean leaves it out.
Sources: Karpukhin et al., 2020 (arXiv 2004.04906) for answer recall in the top k; HotpotQA's supporting facts.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from flashrag.metrics.answer import normalize_answer

_NOT_IN_PASSAGES = frozenset({"", "yes", "no", "true", "false", "noanswer"})


def holds_answer(passage: str, gold_answers: Sequence[str]) -> bool:
    """Whether the passage holds a gold answer: its normalised words in a row, as whole words.

    No passage holds a yes/no answer.

    >>> holds_answer("King Wu of Zhou", ["the king Wu"]), holds_answer("Wuhan", ["Wu"]), holds_answer("no", ["no"])
    (True, False, False)
    """
    words = f" {normalize_answer(passage)} "
    return any(f" {gold} " in words for gold in _searchable(gold_answers))


def answer_in_top_k(
    searches: Iterable[Sequence[str]], gold_answers: Sequence[str], top_k: int | None = None
) -> float | None:
    """Answer recall at k: 1.0 when one of the first `top_k` passages of any search holds a gold answer, else 0.0.

    `searches` are the passages of each search, best first; without `top_k` all of them count. None for a yes/no
    question.
    """
    if not _searchable(gold_answers):
        return None
    return float(any(holds_answer(passage, gold_answers) for found in searches for passage in found[:top_k]))


def _searchable(gold_answers: Sequence[str]) -> list[str]:
    return [gold for gold in map(normalize_answer, gold_answers) if gold not in _NOT_IN_PASSAGES]


def supporting_documents(metadata: Mapping[str, Any]) -> tuple[str, frozenset[str]] | None:
    """The support that a question's metadata names: ("id" or "title", the names); None if it names none.

    Ids of the corpus (`golden_doc_ids`) take precedence over titles.
    """
    if ids := metadata.get("golden_doc_ids"):
        return "id", frozenset(map(str, ids))
    titles = supporting_titles(metadata)
    return ("title", frozenset(titles)) if titles else None


def supporting_titles(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The titles that the metadata names as support, in its order, each once.

    Reads `supporting_titles`, `supporting` (the demo's), HotpotQA's `supporting_facts` (a list of [title, sentence] or,
    on the hub, {"title": […], "sent_id": […]}), and MuSiQue's supporting `paragraphs`.
    """
    facts = metadata.get("supporting_facts") or []
    named = (
        metadata.get("supporting_titles")
        or metadata.get("supporting")
        or (facts["title"] if isinstance(facts, Mapping) else [title for title, *_ in facts])
        or [paragraph["title"] for paragraph in metadata.get("paragraphs") or [] if paragraph.get("is_supporting")]
    )
    return tuple(dict.fromkeys(map(str, named)))


def named_support(metadata: Mapping[str, Any]) -> dict[str, list[str]]:
    """The part of the metadata that names the support, for a record of its own: lists that may be empty.

    >>> named_support({"supporting_facts": [["Wu", 0], ["Wu", 2]], "hops": 1})
    {'golden_doc_ids': [], 'supporting_titles': ['Wu']}
    """
    ids = map(str, metadata.get("golden_doc_ids") or ())
    return {"golden_doc_ids": list(ids), "supporting_titles": list(supporting_titles(metadata))}


def support_coverage(metadata: Mapping[str, Any], ids: Collection[str], titles: Collection[str]) -> float | None:
    """Share of the supporting documents that any search retrieved; None if the metadata names none.

    `ids` and `titles` are those of the retrieved passages. Titles are compared without case and outer white space.
    """
    support = supporting_documents(metadata)
    if support is None:
        return None
    kind, wanted = support
    if kind == "id":
        return len(wanted & set(ids)) / len(wanted)
    wanted = frozenset(title.strip().casefold() for title in wanted)
    return len(wanted & {title.strip().casefold() for title in titles}) / len(wanted)
