"""A retriever on another server: the retrieval client behind the interface of a local retriever.

The client lives in an event loop of its own thread, so that any thread may search, even one with a running event loop.
The client waits, retries, balances and fails over. A search without an answer raises `SearchError`.
"""

import atexit
from collections.abc import Sequence
from contextlib import ExitStack

from anyio.from_thread import start_blocking_portal

from flashrag.client import RetrievalClient, check_addresses, check_server
from flashrag.document import Hit
from flashrag.errors import UserError
from flashrag.retriever.base import PassageCount, Retriever

KEY = "remote_retriever_url"


class RemoteRetriever(Retriever):
    def __init__(self, urls: Sequence[str], corpus: PassageCount, topk: int) -> None:
        self.method = "remote"
        self.corpus = corpus
        self.topk = topk
        self._client = RetrievalClient(urls, top_n=topk)
        self._resources = ExitStack()
        self._portal = self._resources.enter_context(start_blocking_portal())
        self._resources.callback(self._portal.call, self._client.aclose)
        atexit.register(self.close)

    def rank(self, queries: Sequence[str], num: int) -> list[list[Hit]]:
        return self._portal.call(self._client.batch_search, queries, num)

    def close(self) -> None:
        """Close the connections; no search is possible afterwards. Closing again does nothing."""
        atexit.unregister(self.close)
        self._resources.close()


def check_remote(url: str | Sequence[str]) -> tuple[tuple[str, ...], PassageCount]:
    """The addresses, and how many passages the first healthy server has; raises `UserError` if none is healthy."""
    urls = check_addresses(url, KEY)
    health = check_server(urls, key=KEY)
    try:
        return urls, PassageCount(int(health.json()["documents"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{KEY}: {health.url} does not say how many documents it has ({health.text[:200]!r}); "
            "give the address of a ReSearch retrieval server"
        ) from error
