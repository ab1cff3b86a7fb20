r"""The dialect of a family of models: the tags around its searches, results and answers, and the text between them.

The episode is the same for every dialect (episode.py). Models are trained here in `RESEARCH` and `SEARCH_R1`; each
dialect serves to evaluate published models in the way that their authors run them. Sources: the ReSearch pilot's
published description; Search-R1 (Jin et al., 2025, arXiv 2503.09516); Search-o1 (Li et al., 2025, arXiv 2501.05366).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Self

from flashrag.document import NUMBERED, WHOLE, Document, render_passages


class Tag(NamedTuple):
    """A pair of strings that encloses a block."""

    open: str
    close: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """The tags of a family of models, the text around a result (`render_result`), and the place of the answer.

    `answer` is None if a model may put its boxed answer anywhere; such a dialect has no format rule. If `boxed`, the
    answer is the content of the last `\\boxed{…}`; otherwise it is the whole answer block. With `one_step_a_turn` a
    valid turn is one think block, then one call or the answer, with nothing but white space before and between them.
    """

    name: str
    think: Tag
    search: Tag
    result: Tag
    answer: Tag | None
    lead: str
    margin: str
    tail: str
    passage: str
    separator: str
    boxed: bool
    stops_at_answer: bool = False
    one_step_a_turn: bool = False
    more_calls: tuple[Tag, ...] = ()

    def with_calls(self, *tags: Tag) -> Self:
        """This dialect plus further tools that are called by these tags."""
        return replace(self, more_calls=(*self.more_calls, *tags))

    @property
    def calls(self) -> tuple[Tag, ...]:
        """The tags by which a model calls its tools."""
        return (self.search, *self.more_calls)

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings after which the engine stops sampling."""
        at_answer = (self.answer.close,) if self.answer and self.stops_at_answer else ()
        return (*(tag.close for tag in self.calls), *at_answer)

    @property
    def blocks(self) -> tuple[Tag, ...]:
        """Every pair of tags with a meaning in this dialect."""
        return (self.think, *self.calls, self.result, *((self.answer,) if self.answer else ()))

    @property
    def tags(self) -> tuple[str, ...]:
        """The opening and the closing string of every block."""
        return tuple(string for tag in self.blocks for string in tag)

    @property
    def pattern(self) -> re.Pattern[str]:
        """A pattern that matches any tag of the dialect."""
        return _pattern(self.tags)

    def render_search(self, query: str) -> str:
        """The text of a search, as the prompts teach it."""
        return f"{self.search.open} {query} {self.search.close}"

    def render_result(self, body: str) -> str:
        """The text that is spliced in after a closed call."""
        return f"{self.open_result(body)}{self.margin}{self.result.close}{self.tail}"

    def open_result(self, body: str) -> str:
        """The text of a result up to the end of its body."""
        return f"{self.lead}{self.result.open}{self.margin}{body}"

    def shown_answer(self, answer: str) -> str:
        """The text around an answer, as the prompts teach it."""
        return rf"The final answer is \[ \boxed{{{answer}}} \]" if self.boxed else answer

    def render_passages(self, documents: Sequence[Document]) -> str:
        return render_passages(documents, self.passage, self.separator)


@lru_cache
def _pattern(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tags)))


THINK = Tag("<think>", "</think>")
SEARCH = Tag("<search>", "</search>")
PYTHON = Tag("<python>", "</python>")
ANSWER = Tag("<answer>", "</answer>")

RESEARCH = Dialect(
    name="research",
    think=THINK,
    search=SEARCH,
    result=Tag("<result>", "</result>"),
    answer=ANSWER,
    lead=" ",
    margin="\n",
    tail="",
    passage=WHOLE,
    separator="\n\n",
    boxed=True,
)
SEARCH_R1 = Dialect(
    name="search-r1",
    think=THINK,
    search=SEARCH,
    result=Tag("<information>", "</information>"),
    answer=ANSWER,
    lead="\n\n",
    margin="",
    tail="\n\n",
    passage=NUMBERED,
    separator="\n",
    boxed=False,
    stops_at_answer=True,
    one_step_a_turn=True,
)
SEARCH_O1 = Dialect(
    name="search-o1",
    think=THINK,
    search=Tag("<|begin_search_query|>", "<|end_search_query|>"),
    result=Tag("<|begin_search_result|>", "<|end_search_result|>"),
    answer=None,
    lead="\n\n",
    margin="",
    tail="\n\n",
    passage=WHOLE,
    separator="\n\n",
    boxed=True,
)
DIALECTS = {dialect.name: dialect for dialect in (RESEARCH, SEARCH_R1, SEARCH_O1)}
