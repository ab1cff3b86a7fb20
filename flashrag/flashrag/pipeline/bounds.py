"""The floor and the ceiling of a method: a random answer, and an answer from the supporting passages themselves."""

import bisect
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from flashrag.dataset import Question
from flashrag.document import Passage
from flashrag.episode import Trajectory
from flashrag.errors import ReSearchError, UserError
from flashrag.metrics import named_support, supporting_titles
from flashrag.pipeline.basic import BasicPipeline
from flashrag.pipeline.trace import Passages, Trace

LOOKED_THROUGH = 100  # passages among which a title is looked for: many begin with the same word


class RandomPipeline(BasicPipeline):
    """Draws one of the other questions of the set, and answers with its first gold answer.

    The draw depends only on the seed and the question's id, so that a continued run gives the same answers.
    """

    needs_retriever = needs_generator = False
    _ids: list[str] | None = None

    def prepare(self, questions: Sequence[Question]) -> None:
        self._answers = {question.id: question.golden_answers[0] for question in questions}
        self._ids = sorted(self._answers)

    async def answer(self, question: Question) -> Trajectory:
        if self._ids is None:
            raise UserError("random draws from the answers of the whole set; call prepare(questions) first")
        own = bisect.bisect_left(self._ids, question.id)
        others = len(self._ids) - 1
        answer = ""
        if others:
            drawn = random.Random(f"{self.settings.seed} {question.id}").randrange(others)
            answer = self._answers[self._ids[drawn + (drawn >= own)]]
        return self.trace(question).of_text(answer, "drawn")


class NoSupport(ReSearchError):
    """The supporting passages of a question are unknown, or not in the corpus."""


class OraclePassagesPipeline(BasicPipeline):
    """Answers from the passages that the data set itself names as support, by the prompt of naive RAG.

    The passages come from a question's metadata, in the formats of HotpotQA (both), 2WikiMultihopQA and MuSiQue. If the
    metadata names only titles, a search for each title gives the passages with exactly that title: those with a named
    id (`golden_doc_ids`), or else the first.
    """

    own_prompt = "with_passages"

    def prepare(self, questions: Sequence[Question]) -> None:
        if not any(supporting_passages(q.metadata) or supporting_titles(q.metadata) for q in questions):
            raise UserError(
                "oracle-passages needs supporting passages, and no question's metadata has any; expected "
                "supporting_facts with context (HotpotQA, 2WikiMultihopQA), paragraphs (MuSiQue) or supporting_titles"
            )

    async def answer(self, question: Question) -> Trajectory:
        trace = self.trace(question)
        documents = supporting_passages(question.metadata)
        if documents:
            trace.give(documents)
        else:
            documents = await _looked_up(question.metadata, trace)
        if not documents:
            raise NoSupport(f"question {question.id}: its metadata names no supporting passage that could be found")
        prompt = self.template.fill(documents, question=question.question)
        return trace.of_text(*await trace.ask(prompt))


async def _looked_up(metadata: Mapping[str, Any], trace: Trace) -> Passages:
    support, found = named_support(metadata), list[Passage]()
    for title in support["supporting_titles"]:
        found += await trace.search(title, LOOKED_THROUGH, partial(_named, title, support["golden_doc_ids"]))
    return tuple(found)


def _named(title: str, ids: Sequence[str], passages: Passages) -> Passages:
    """Those with this title and one of the ids, or else the first with the title."""
    titled = tuple(passage for passage in passages if passage.title.casefold() == title.casefold())
    return tuple(passage for passage in titled if passage.id in ids) or titled[:1]


def supporting_passages(metadata: Mapping[str, Any]) -> tuple[Passage, ...]:
    """The supporting passages whose text the metadata holds, each once; their ids are their titles."""
    paragraphs = metadata.get("paragraphs") or []
    supporting = [(p["title"], p["paragraph_text"]) for p in paragraphs if p.get("is_supporting")]
    titles = set(supporting_titles(metadata))
    supporting += [(title, text) for title, text in _context(metadata.get("context") or []) if title in titles]
    return tuple(dict.fromkeys(Passage(title, f'"{title}"\n{text.strip()}') for title, text in supporting))


def _context(context: Any) -> Iterator[tuple[str, str]]:
    """The passages of HotpotQA's official records ([title, sentences] pairs) or of the hub's (a dict of lists)."""
    if isinstance(context, Mapping):
        texts = context.get("sentences") or context.get("content") or []
        context = zip(context["title"], texts, strict=True)
    for title, sentences in context:
        yield title, "".join(sentences)
