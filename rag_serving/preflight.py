"""What the server's command looks at before it starts: configuration, address, files, memory; and its plan."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from flashrag.config import TOKEN_VARIABLE
from flashrag.preflight import MACHINE_RULES, Finding, Plan, checked_command, fact, gathered, warning
from flashrag.retriever import RETRIEVER_PLAN, RETRIEVER_RULES, RetrieverFacts
from flashrag.system.local_server import LOOPBACK, http_url, listening_socket
from rag_serving.settings import ServerSettings, read_settings

BACKLOG = 2048
LOCAL = (LOOPBACK, "localhost", "::1")


class ServingFacts(RetrieverFacts):
    """The configuration in a file, and an address to listen on."""

    def __init__(self, config: Path, num_retriever: int = 1, host: str = LOOPBACK, port: int = 0) -> None:
        super().__init__(lambda: self.settings)
        self.config = config
        self.num_retriever = num_retriever
        self.host = host
        self.port = port

    @fact
    def settings(self) -> ServerSettings:
        return read_settings(self.config)

    @fact
    def listener(self) -> socket.socket:
        """Listens from now on, so that nobody else takes the port; whoever gathers it closes it."""
        return listening_socket(self.host, self.port, BACKLOG)

    @fact
    def url(self) -> str:
        return http_url(*self.listener.getsockname()[:2])


def address(facts: ServingFacts) -> Iterator[Finding]:
    if facts.listener and facts.host not in LOCAL and not os.environ.get(TOKEN_VARIABLE):
        yield warning(
            f"--host {facts.host} lets everybody in the network search: set {TOKEN_VARIABLE} (docs/serving.md)"
        )


def searches(facts: ServingFacts) -> Iterator[Finding]:
    cores = facts.machine.cores
    if facts.num_retriever > cores + 1:
        yield warning(
            f"--num_retriever {facts.num_retriever}: more searches at once than the {cores} cores can serve slow each "
            f"other down; {cores + 1} keep them busy"
        )


SERVING_RULES = {
    "serving.config": gathered("settings"),
    "serving.address": address,
    "serving.searches": searches,
    **RETRIEVER_RULES,
    **MACHINE_RULES,
}


def _limits(facts: ServingFacts) -> str:
    settings = facts.settings
    return (
        f"{settings.max_batch_queries} queries in a request, {settings.max_top_n} documents a query, "
        f"{settings.max_queue_queries} queries may wait, {settings.request_timeout_s:g} s"
    )


PLAN: Plan[ServingFacts] = {
    "server": {
        "command": lambda _: checked_command("python rag_serving/serving.py", sys.argv[1:]),
        "configuration": lambda facts: str(facts.config.absolute()),
        "address": lambda facts: facts.url,
        "token": lambda _: "required" if os.environ.get(TOKEN_VARIABLE) else f"none ({TOKEN_VARIABLE} is not set)",
        "searches at once": lambda facts: str(facts.num_retriever),
        "limits": _limits,
    },
    "retriever": {
        "method": lambda facts: facts.settings.retrieval_method,
        **RETRIEVER_PLAN,
    },
}
