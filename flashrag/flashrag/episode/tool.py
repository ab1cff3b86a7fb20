"""A tool of an episode: a tag, a parser and an async call. `search` is the tool that every episode has.

A call is the text that a model wrote between a tool's tags. The results of all tools are rendered, fitted into the
budgets, masked and counted in the same way, and the failure of any tool ends the episode (run.py).
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

from flashrag.document import Document, Hit, Passage
from flashrag.episode.dialect import Dialect, Tag

# Longer than any sensible query, and below the retrieval server's own limit. A longer query is the model's mistake.
MAX_QUERY_CHARS = 1000
SEARCH_LIMIT_REACHED = "The limit of searches is reached. No further search is possible."
SEARCHES_LEFT, CALLS_LEFT = "Searches left: {left}.", "Calls left: {left}."


class ToolResult(NamedTuple):
    """The passages that a tool returned, best first; if `read` is given, the model sees it instead."""

    passages: tuple[Passage, ...]
    read: tuple[Document, ...] | None = None

    @property
    def shown(self) -> tuple[Document, ...]:
        """The documents that the model reads."""
        return self.passages if self.read is None else self.read

    @classmethod
    def ranked(cls, hits: Iterable[Hit]) -> Self:
        """The result of a search."""
        return cls(tuple(map(Passage.of, hits)))


Ask = Callable[[str], Awaitable[ToolResult]]


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a model can call; messages to the model use its `name`, and `argument` as the name of its argument.

    `parse` turns the text between the tags into the argument of `call`, which may have at most `max_chars` characters.
    `call` raises `ToolError` if the tool gives no answer; it returns any other error as a result. The model reads
    `limit_reached` instead of a result if the episode has no calls left.
    """

    name: str
    argument: str
    tag: Tag
    parse: Callable[[str], str]
    call: Ask
    max_chars: int
    limit_reached: str


def search_tool(dialect: Dialect, search: Ask) -> Tool:
    """The search tool, with the tags of a dialect."""
    return Tool("search", "query", dialect.search, str.strip, search, MAX_QUERY_CHARS, SEARCH_LIMIT_REACHED)


def calls_left(dialect: Dialect, left: int) -> str:
    """The words by which a model is told how many calls it has left; the tools of its dialect share them."""
    return (CALLS_LEFT if dialect.more_calls else SEARCHES_LEFT).format(left=left)


class CallFault(StrEnum):
    """Why a closed call cannot be made; the model reads `message_for` its tool as the result."""

    UNOPENED = "The {name} was closed without being opened. Write {open} {argument} {close}."
    EMPTY = "The {name} {argument} was empty."
    TOO_LONG = "The {name} {argument} was longer than {max_chars} characters."

    def message_for(self, tool: Tool) -> str:
        return self.value.format(
            name=tool.name,
            argument=tool.argument,
            open=tool.tag.open,
            close=tool.tag.close,
            max_chars=tool.max_chars,
        )


class Call(NamedTuple):
    """A closed call: its tool, its argument, and the reason if it cannot be made."""

    tool: Tool
    argument: str
    fault: CallFault | None


def find_call(sampled_text: str, tools: Sequence[Tool]) -> Call | None:
    """The first closed call in one sampled segment, None if there is none."""
    ends = [(sampled_text.find(tool.tag.close), tool) for tool in tools]
    end, tool = min((found for found in ends if found[0] >= 0), key=lambda found: found[0], default=(-1, None))
    if tool is None:
        return None
    _, opened, body = sampled_text[:end].rpartition(tool.tag.open)
    if not opened:
        return Call(tool, "", CallFault.UNOPENED)
    argument = tool.parse(body)
    if not argument:
        return Call(tool, "", CallFault.EMPTY)
    return Call(tool, argument, CallFault.TOO_LONG if len(argument) > tool.max_chars else None)
