"""The client of the retrieval server.

client.py     pooled requests, bounded in time and attempts, one typed error at the end
balancing.py  several servers: their addresses, their token, and the choice of the next one to ask
reply.py      the meaning of a server's reply
health.py     checks once, before anything expensive starts, that a server answers
preflight.py  what the servers of a run say about themselves, one search, and what follows from it
controls.py   what a search gives in a control run: nothing, another question's or query's passages, its own late
"""

from flashrag.client.balancing import PROBE_TIMEOUT_S, check_address, check_addresses
from flashrag.client.client import RetrievalClient
from flashrag.client.controls import SearchControl, controlled, different_questions, for_one_question, forced_query
from flashrag.client.health import check_server
from flashrag.client.preflight import ANY_QUERY, RetrievalServers, ask_servers, server_findings
from flashrag.config import TOKEN_VARIABLE

__all__ = [
    "ANY_QUERY",
    "PROBE_TIMEOUT_S",
    "TOKEN_VARIABLE",
    "RetrievalClient",
    "RetrievalServers",
    "SearchControl",
    "ask_servers",
    "check_address",
    "check_addresses",
    "check_server",
    "controlled",
    "different_questions",
    "for_one_question",
    "forced_query",
    "server_findings",
]
