"""Full collections are rare in a server: nothing that a request leaves behind may need one."""

import gc
import http.client
import json
from urllib.parse import urlsplit

import pytest

from rag_serving.app import create_app
from rag_serving.settings import read_settings
from rag_serving.workers import ThreadWorkers

REQUESTS = 100
BODIES = {
    200: json.dumps({"query": "capital", "top_n": 2}),
    400: json.dumps({"query": " "}),
    422: json.dumps({"query": "capital", "top_n": -1}),
    500: json.dumps({"query": "boom"}),
}


@pytest.mark.parametrize("status", BODIES)
def test_requests_leave_no_cycles_behind(site, engine, real_server, status):
    app = create_app(read_settings(site.with_config(cache_queries=0)), ThreadWorkers(lambda: engine, 1))
    with real_server(app) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)

        def ask() -> None:
            connection.request("POST", "/search", BODIES[status], {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status

        ask()
        gc.collect()
        gc.disable()
        try:
            for _ in range(REQUESTS):
                ask()
            unreachable = gc.collect()
        finally:
            gc.enable()
            connection.close()
    assert unreachable < REQUESTS
