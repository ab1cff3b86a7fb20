"""The first request that a method would send to the model: made by the method's own code, and sent to nobody.

Stand-ins take the place of the retriever and of the generator. A search finds one passage that says what it stands for.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from flashrag.dataset import Question
from flashrag.document import Document, Hit
from flashrag.pipeline import BasicPipeline
from flashrag.pipeline.trace import PromptTooLong

FOUND = "(the passages that the search finds)"


class Request(NamedTuple):
    """A call of a generator: its method, the prompt (ids; or messages, for the chat route), and everything else."""

    route: str
    prompt: Any
    max_tokens: int | None
    others: tuple[Any, ...]
    named: dict[str, Any]

    @property
    def wants_log_probs(self) -> bool:
        return bool(self.named.get("log_probs"))


class Asked(BaseException):
    """Carries the first request out of a method, whatever errors the method handles."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request


class Recorder:
    """Stands for a generator."""

    def __init__(self, tokenizer: Any, eos_token_ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.eos_token_ids = tuple(eos_token_ids)

    async def generate(self, prompt: Any, max_tokens: int, *others: Any) -> NoReturn:
        raise Asked(Request("generate", prompt, max_tokens, others, {}))

    async def complete(self, prompt: Any, max_tokens: int, *others: Any, **named: Any) -> NoReturn:
        raise Asked(Request("complete", prompt, max_tokens, others, named))

    async def chat(self, messages: Any, max_tokens: int | None = None, *others: Any, **named: Any) -> NoReturn:
        raise Asked(Request("chat", messages, max_tokens, others, named))


class FoundPassage:
    """Stands for a retriever: finds a passage with the query as its title."""

    async def search_scored(self, query: str, top_n: int) -> list[Hit]:  # noqa: ARG002 (the retriever's interface)
        return [Hit(Document("0", f'"{query}"\n{FOUND}'), 0.0)]


def first_request(pipeline: BasicPipeline, question: Question) -> Request | None:
    """The first request for a question, None if the method sends none. Raises `ReSearchError` if it cannot be made."""
    try:
        asyncio.run(pipeline.answer(question))
    except Asked as asked:
        return asked.request
    return None


def too_long(pipeline: BasicPipeline, questions: Iterable[Question]) -> list[Question]:
    """The questions whose prompts leave no room for a response."""

    def is_too_long(question: Question) -> bool:
        try:
            first_request(pipeline, question)
        except PromptTooLong:
            return True
        return False

    return [question for question in questions if is_too_long(question)]
