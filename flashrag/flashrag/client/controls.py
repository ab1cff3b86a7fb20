"""Controls: what a search gives in place of its own result, to tell whether a model searches or remembers.

A model that is right as often under a control as without one answers from its memory. Training and evaluation share the
controls. A draw depends on the seed and the query alone, so that a repeated run draws the same; a stale result depends
on the queries of its question alone.
Does not cover: the limit of searches, by which callers forbid them; how an episode begins with a search
(flashrag.episode); the comparison of runs (evaluation/report).
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from enum import StrEnum
from typing import Any, Self

from flashrag.document import Hit
from flashrag.errors import UserError
from flashrag.questions import same_question_key

FEWEST_QUESTIONS = 20  # for RANDOM: of fewer, a search would too often find the passages of its own question


class SearchControl(StrEnum):
    """What a search gives."""

    NONE = "none"  # its own result
    EMPTY = "empty"  # no passages; no server is asked
    RANDOM = "random"  # the passages of another question
    STALE = "stale"  # the passages of the question's last different query; none for the first
    DELAYED = "delayed"  # its own result, late
    FORCED = "forced"  # its own result, after a search for the question that the model did not ask for
    FORBIDDEN = "forbidden"  # nothing: the first search is told that the limit of searches is reached

    @property
    def warning(self) -> str:
        """What a person should know before a run under this control starts."""
        return f"{self}: this run is a control, in which no search is as usual; compare it with a run without"


class ControlledSearch:
    """A retrieval client, or a retriever in this process, under a control."""

    def __init__(self, client: Any, control: SearchControl, seed: int, delay_s: float, questions: Iterable[str]):
        """`delay_s` is the longest delay of DELAYED; RANDOM draws from `questions`. Raises `UserError` for too few."""
        self._client = client
        self._control = control
        self._seed = seed
        self._delay_s = delay_s
        self._questions = different_questions(questions) if control is SearchControl.RANDOM else []
        self._asked: list[tuple[str, str]] | None = None

    def for_one_question(self) -> Self:
        """This search for one question, whose queries STALE remembers."""
        own = copy(self)
        own._asked = []
        return own

    async def search_scored(self, query: str, *top_n: int) -> Sequence[Hit]:
        """What the control gives for a query. Raises `SearchError` if the client does."""
        draws = random.Random(f"{self._seed} {query!a}")  # ascii: a lone surrogate cannot be encoded
        if self._control is SearchControl.EMPTY:
            return []
        if self._control is SearchControl.DELAYED:
            await asyncio.sleep(draws.uniform(0.0, self._delay_s))
        if self._control is SearchControl.RANDOM:
            own = same_question_key(query)
            query = next(text for key, text in draws.sample(self._questions, 2) if key != own)
        if self._control is SearchControl.STALE:
            earlier = self._earlier_query(query)
            if earlier is None:
                return []
            query = earlier
        return await self._client.search_scored(query, *top_n)

    def forced_query(self, question: str) -> str | None:
        """The query of the search that the episode of a question begins with; None if the model begins."""
        return question if self._control is SearchControl.FORCED else None

    def _earlier_query(self, query: str) -> str | None:
        """The question's last query that differs from this one: a repeated query must not find its own passages."""
        assert self._asked is not None, "each question searches with its own `for_one_question`"
        own = same_question_key(query)
        self._asked.append((own, query))
        return next((text for key, text in reversed(self._asked) if key != own), None)

    async def aclose(self) -> None:
        """Close the client's connections, if it has any."""
        if hasattr(self._client, "aclose"):
            await self._client.aclose()


def different_questions(questions: Iterable[str]) -> list[tuple[str, str]]:
    """Each question once, with its `same_question_key`; raises `UserError` if they are too few for RANDOM."""
    found = {same_question_key(question): question for question in questions}
    if len(found) < FEWEST_QUESTIONS:
        raise UserError(
            f"the search control random draws from the questions of the run, which has {len(found)} different ones; "
            f"give at least {FEWEST_QUESTIONS}, or another control"
        )
    return list(found.items())


def controlled(
    client: Any, control: SearchControl, *, seed: int, delay_s: float, questions: Callable[[], Iterable[str]]
) -> Any:
    """The client under a control, as `ControlledSearch` describes; `questions` is called only if they are needed.

    Each question searches with `for_one_question` of it.
    """
    if control in (SearchControl.NONE, SearchControl.FORBIDDEN):
        return client
    return ControlledSearch(client, control, seed, delay_s, questions() if control is SearchControl.RANDOM else ())


def for_one_question(client: Any) -> Any:
    """A client, which may be under a control, for the searches of one question."""
    return client.for_one_question() if isinstance(client, ControlledSearch) else client


def forced_query(client: Any, question: str) -> str | None:
    """`ControlledSearch.forced_query` of a client, which may be under a control."""
    return client.forced_query(question) if isinstance(client, ControlledSearch) else None
