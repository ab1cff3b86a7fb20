import errno
import os
import socket
import sys
import time

import httpx
import pytest

from flashrag.errors import UserError
from flashrag.system.local_server import LOOPBACK, ServerFailed, check_port, listening_socket, serving

# Answers /health with 503 for a moment, as a server that is still loading does.
LOADING_SERVER = """
import http.server, sys, time
started = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() - started > 1 else 503)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_the_block_begins_when_the_server_is_healthy_and_ends_with_its_process(tmp_path, closed_port, closed_url):
    with serving([sys.executable, "-c", LOADING_SERVER, str(closed_port)], closed_url, tmp_path / "log") as process:
        assert httpx.get(f"{closed_url}/health").status_code == 200
    assert process.poll() is not None
    with pytest.raises(httpx.ConnectError):
        httpx.get(closed_url)


def test_a_server_that_ends_is_reported_with_its_last_words(tmp_path, closed_url):
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    started = time.monotonic()
    with (
        pytest.raises(ServerFailed, match=r"(?s)exit code 1.*no such model"),
        serving(command, closed_url, tmp_path / "log"),
    ):
        pass
    assert time.monotonic() - started < 30


def test_a_server_that_never_answers_is_given_up_and_ended(tmp_path, closed_url):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    started = time.monotonic()
    with (
        pytest.raises(ServerFailed, match="no healthy server"),
        serving(command, closed_url, tmp_path / "log", timeout_s=1.0),
    ):
        pass
    assert time.monotonic() - started < 30


def test_a_socket_listens_at_once_and_keeps_others_out():
    with listening_socket(LOOPBACK, 0) as listener:
        host, port = listener.getsockname()
        with socket.create_connection((host, port)):
            pass
        with pytest.raises(UserError, match=rf"--port {port}: cannot listen on 127\.0\.0\.1:{port} \(Address already"):
            check_port(LOOPBACK, port)
    check_port(LOOPBACK, port)


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "a" * 70, "ü" * 70])
def test_a_host_that_is_not_of_this_machine_is_named(host):
    with pytest.raises(UserError, match=r"^--host .* is not an address of this machine \(.*\); try 127\.0\.0\.1, or 0"):
        check_port(host, 0)


def test_a_port_that_is_kept_for_root_is_told(monkeypatch):
    def bind(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(UserError, match=r"--port 80: .*Permission denied.*the system keeps low ports for root"):
        check_port(LOOPBACK, 80)
