"""The search tool: a query, answered by the passages that a retrieval client finds."""

from flashrag.dialect import Dialect
from flashrag.tools.tool import Ask, Tool

# Longer than any sensible query, and below the retrieval server's own limit: what is longer is the model's mistake.
MAX_QUERY_CHARS = 1000
SEARCH_LIMIT_REACHED = "The limit of searches is reached. No further search is possible."


def search_tool(dialect: Dialect, search: Ask) -> Tool:
    """`search` as the models of a dialect call it."""
    return Tool("search", "query", dialect.search, str.strip, search, MAX_QUERY_CHARS, SEARCH_LIMIT_REACHED)
