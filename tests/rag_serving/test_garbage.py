"""Full collections are rare in a server: nothing that a request leaves behind may need one."""

import gc
import http.client
import json
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from rag_serving.app import create_app
from rag_serving.settings import read_settings

REQUESTS = 100
BODIES = {
    200: json.dumps({"query": "capital", "top_n": 2}),
    400: json.dumps({"query": " "}),
    422: json.dumps({"query": "capital", "top_n": -1}),
    500: json.dumps({"query": "boom"}),
}


@pytest.mark.parametrize("status", BODIES)
def test_requests_leave_no_cycles_behind(site, engine, real_server, status):
    app = create_app(read_settings(site.with_config(cache_queries=0)), lambda: engine, 1)
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


def test_what_is_loaded_is_looked_at_no_more():
    code = """
import gc
from rag_serving.garbage import shorten_pauses
loaded = [[] for _ in range(1000)]
shorten_pauses()
assert gc.get_freeze_count() > 1000
assert not any(each is loaded for each in gc.get_objects())
assert gc.get_threshold()[2] == 1000
"""
    subprocess.run([sys.executable, "-c", code], check=True)
