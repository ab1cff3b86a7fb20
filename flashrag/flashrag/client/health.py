"""Asks once, before anything expensive starts, whether a retrieval server is there.

One healthy server is enough: the client does without the others until they answer.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from flashrag.client.balancing import authorization, check_addresses
from flashrag.config import TOKEN_VARIABLE
from flashrag.errors import UserError
from flashrag.system.network import ask, detour

REMEDY = "start one with: python rag_serving/serving.py --config rag_serving/serving_config.yaml --port P"
_log = logging.getLogger(__name__)


def check_server(url: str | Sequence[str], *, timeout_s: float = 5.0, key: str = "search_url") -> httpx.Response:
    """The /health reply of the first healthy server in `url`; raises `UserError` naming `key` when none is healthy.

    A healthy server also accepts our token. A warning names each unhealthy server and its problem.
    """
    urls = check_addresses(url, key)
    with ThreadPoolExecutor(len(urls)) as pool:
        answers = list(pool.map(lambda one: _health_or_problem(one, timeout_s, f"{key}={one}"), urls))
    healthy = [answer for answer in answers if isinstance(answer, httpx.Response)]
    problems = [answer for answer in answers if isinstance(answer, str)]
    if not healthy:
        raise UserError("; ".join(problems) + f"; {REMEDY}")
    for problem in problems:
        _log.warning("%s; the other servers are used until it answers", problem)
    return healthy[0]


def _health_or_problem(url: str, timeout_s: float, given: str) -> httpx.Response | str:
    """The server's /health reply, or the reason why the server cannot be used."""
    try:
        health = ask(f"{url}/health", timeout_s=timeout_s)
        # /health is open to everyone; /metrics asks for the token, as the search routes do.
        metrics = ask(f"{url}/metrics", timeout_s=timeout_s, headers=authorization())
    except httpx.RequestError as error:
        return f"no retrieval server answers at {given} ({type(error).__name__} {error}){detour(url)}"
    if '"loading"' in health.text and health.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return f"the retrieval server at {given} is still loading its index: try again when it says ready"
    if not health.is_success:
        return f"{given}/health answered {health.status_code}, expected 200{detour(url)}"
    if metrics.status_code == httpx.codes.UNAUTHORIZED:
        return f"{given} asks for another token; set {TOKEN_VARIABLE} to the server's"
    return health
