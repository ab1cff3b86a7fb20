"""What the retrieval servers of a run say before it starts, and what can be wrong with that.

Each server is asked for its health, and one of them for a search, so that a healthy server of another kind is told.
"""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx

from flashrag.client.balancing import check_addresses
from flashrag.client.client import RetrievalClient
from flashrag.client.health import check_server
from flashrag.client.reply import Retryable
from flashrag.errors import SearchError, UserError
from flashrag.preflight import Finding, error, warning
from flashrag.system.network import ask

ANSWER_S = 5.0
ANY_QUERY = "first king of Zhou"  # to be asked of any corpus


class RetrievalServers(NamedTuple):
    """The servers of a run: the healthy ones with what /health says, the others with their problems.

    `max_top_n` is the largest number of passages that one of them gives, None if none says.
    `problem` is what a search met, and `is_final` whether it would be met again.
    """

    healthy: dict[str, dict[str, Any]]
    problems: list[str]
    max_top_n: int | None
    problem: str | None
    is_final: bool


def ask_servers(url: str | Sequence[str], query: str, num: int, key: str) -> RetrievalServers:
    """Health of all servers, and one search; raises `UserError` naming `key` if no server is healthy."""
    urls = check_addresses(url, key)

    def health(one: str) -> dict[str, Any] | str:
        try:
            return _json_object(check_server(one, key=key))
        except UserError as reason:
            return str(reason)

    with ThreadPoolExecutor(len(urls)) as pool:
        answers = dict(zip(urls, pool.map(health, urls), strict=True))
    healthy = {one: answer for one, answer in answers.items() if isinstance(answer, dict)}
    problems = [answer for answer in answers.values() if isinstance(answer, str)]
    if not healthy:
        raise UserError("; ".join(problems))
    limits = [limit for one in healthy if (limit := _max_top_n(one))]
    problem, is_final = _search(list(healthy), query, num)
    return RetrievalServers(healthy, problems, min(limits, default=None), problem, is_final)


def server_findings(servers: RetrievalServers, url: object, key: str, num: int, num_key: str) -> Iterator[Finding]:
    """Findings about the servers at `url`, the value of `key`, that are to give `num` passages, that of `num_key`."""
    for problem in servers.problems:
        yield warning(f"{problem}; the other servers are used until it answers")
    if servers.max_top_n is not None and num > servers.max_top_n:
        yield error(
            f"{num_key}={num}, but the retrieval server gives at most {servers.max_top_n} passages (its max_top_n); "
            f"lower {num_key}, or raise the server's limit"
        )
        return
    if servers.problem and servers.is_final:
        yield error(
            f"a search at {key}={url} was refused: {servers.problem}; give the address of a ReSearch retrieval server"
        )
    elif servers.problem:
        yield warning(f"a search was not answered within {ANSWER_S:g} s: {servers.problem}")
    for one, health in servers.healthy.items():
        documents = health.get("documents")
        if isinstance(documents, int) and documents < num:
            yield warning(f"{one} holds {documents} passages, fewer than {num_key}={num}")


def _json_object(reply: httpx.Response) -> dict[str, Any]:
    """{} for a reply that is something else: some servers are healthy without a word."""
    try:
        content = reply.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _max_top_n(url: str) -> int | None:
    """The limit of `top_n` in the OpenAPI document of our server."""
    try:
        document = _json_object(ask(f"{url}/openapi.json", timeout_s=ANSWER_S))
        return int(document["components"]["schemas"]["SearchIn"]["properties"]["top_n"]["maximum"])
    except (httpx.HTTPError, KeyError, TypeError, ValueError):
        return None


def _search(urls: Sequence[str], query: str, num: int) -> tuple[str | None, bool]:
    async def search() -> None:
        async with RetrievalClient(urls, timeout_s=ANSWER_S, deadline_s=ANSWER_S, max_attempts=1) as client:
            await client.search_scored(query, num)

    try:
        asyncio.run(search())
    except (SearchError, ValueError) as reason:  # the HTTP library's own, for an address that it cannot use
        return str(reason), not isinstance(reason.__cause__, Retryable)
    return None, False
