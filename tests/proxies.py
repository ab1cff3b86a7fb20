"""Real proxies in threads of this process, and an environment that names one."""

import os
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import pytest

ProxyServer = TypeVar("ProxyServer", "HttpProxy", "SocksProxy")


def clear_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


class HttpProxy(ThreadingHTTPServer):
    """Forwards to `target` whatever host it is asked for; without one it answers `status`. Keeps what it was asked."""

    def __init__(self, target: str | None = None, status: int = 502):
        super().__init__(("127.0.0.1", 0), _HttpHandler)
        self.target = target
        self.status = status
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _HttpHandler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        proxy = self.server
        assert isinstance(proxy, HttpProxy)
        proxy.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, content, kind = proxy.status, b"no route to that host", "text/plain"
        if proxy.target is not None:
            kept = {name: value for name, value in self.headers.items() if name in ("Content-Type", "Authorization")}
            url = proxy.target + urlsplit(self.path).path
            reply = httpx.request(self.command, url, content=body, headers=kept, trust_env=False)
            status, content, kind = reply.status_code, reply.content, reply.headers["Content-Type"]
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_CONNECT = _answer

    def log_message(self, *_: object) -> None:
        pass


class SocksProxy(socketserver.ThreadingTCPServer):
    """SOCKS5 (RFC 1928) without a password: connects to `target`, whatever host it is asked for."""

    daemon_threads = True

    def __init__(self, target: str):
        super().__init__(("127.0.0.1", 0), _SocksHandler)
        self.target = ("127.0.0.1", int(urlsplit(target).port or 0))
        self.asked: list[str] = []
        self.url = f"socks5://127.0.0.1:{self.server_address[1]}"


class _SocksHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        proxy, client = self.server, self.request
        assert isinstance(proxy, SocksProxy)
        client.recv(2 + client.recv(2, socket.MSG_PEEK)[1])
        client.sendall(b"\x05\x00")
        head = client.recv(512)
        proxy.asked.append(head[5 : 5 + head[4]].decode() if head[3] == 3 else socket.inet_ntoa(head[4:8]))
        client.sendall(b"\x05\x00\x00\x01" + bytes(6))
        with socket.create_connection(proxy.target) as server:
            while True:
                for end in select.select([client, server], [], [])[0]:
                    if not (data := end.recv(65536)):
                        return
                    (server if end is client else client).sendall(data)


@contextmanager
def running(proxy: ProxyServer) -> Iterator[ProxyServer]:
    """The proxy, at work for the length of the block."""
    with proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
