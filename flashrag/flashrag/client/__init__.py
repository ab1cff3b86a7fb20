"""The client of the retrieval server.

client.py     pooled requests, bounded in time and attempts, one typed error at the end
balancing.py  several servers: their addresses, the token they take, which one to ask next
reply.py      what a server's reply means
health.py     is a server there: asked once, before anything expensive starts
"""

from flashrag.client.balancing import PROBE_TIMEOUT_S, check_address, check_addresses
from flashrag.client.client import RetrievalClient
from flashrag.client.health import check_search_url, check_server
from flashrag.config import TOKEN_VARIABLE

__all__ = [
    "PROBE_TIMEOUT_S",
    "TOKEN_VARIABLE",
    "RetrievalClient",
    "check_address",
    "check_addresses",
    "check_search_url",
    "check_server",
]
