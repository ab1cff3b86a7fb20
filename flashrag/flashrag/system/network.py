"""The way to an address: straight, or through the proxy that the environment names for it.

Every HTTP client of ours is made with `client_settings`, and every child process gets `direct_environment`, so that one
rule holds: this machine's own addresses never go through a proxy. For other addresses the variables mean what they mean
to curl and httpx: {http,https,all,no}_proxy, in small letters or in capitals, the small ones first; NO_PROXY also takes
networks (10.0.0.0/8). Does not cover: the clients of other libraries (wandb, Ray, huggingface_hub).
"""

import functools
import importlib.util
import os
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, NamedTuple

import httpx
import psutil

from flashrag.errors import UserError

LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
LOOPBACKS = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
DEFAULT_PORTS = {"http": 80, "https": 443}
# A name or an address, IPv6 included, as httpx holds it; it lets other characters through.
_HOST = re.compile(rb"[A-Za-z0-9._:-]+")


class Proxy(NamedTuple):
    """A proxy, and the variable that names it; as text without its password."""

    variable: str
    url: str

    def __str__(self) -> str:
        return f"{httpx.URL(self.url).copy_with(username=None, password=None)} (from {self.variable})"


def parse_address(text: str, schemes: Sequence[str]) -> httpx.URL:
    """The parts of an address; raises `ValueError` with the reason when it has another scheme, or no usable host."""
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error
    if parsed.scheme not in schemes:
        raise ValueError(f"it begins with none of {', '.join(f'{scheme}://' for scheme in schemes)}")
    if not _HOST.fullmatch(parsed.raw_host):
        raise ValueError("it names no host")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise ValueError(f"{parsed.port} is no port")
    return parsed


def is_this_machine(host: str) -> bool:
    """Whether a name or an address is certainly this machine's. Asks no name server.

    >>> is_this_machine("127.0.0.1"), is_this_machine("[::1]"), is_this_machine("example.org")
    (True, True, False)
    """
    name = host.lower().rstrip(".")
    return is_loopback(host) or name == socket.gethostname().lower() or str(_address(host)) in own_addresses()


def is_loopback(host: str) -> bool:
    """Whether a name or an address means, on every machine, that machine itself.

    >>> is_loopback("127.0.0.2"), is_loopback("localhost"), is_loopback("10.0.0.1")
    (True, True, False)
    """
    if (address := _address(host)) is not None:
        return address.is_loopback or address.is_unspecified
    name = host.lower().rstrip(".")
    return name in LOCAL_NAMES or name.endswith(".localhost")


def own_addresses() -> list[str]:
    """The addresses of this machine's network interfaces."""
    return list(_interfaces())


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface that has the address; None if none has it."""
    return _interfaces().get(address)


def _interfaces() -> dict[str, str]:
    """The names of this machine's network interfaces by their addresses."""
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        one.address.partition("%")[0]: name
        for name, some in psutil.net_if_addrs().items()
        for one in some
        if one.family in families
    }


def proxy_for(url: str, environ: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy for an address, None for the straight way; raises `UserError` for one that cannot be used.

    `environ` stands for the environment variables; by default they are this process's.
    """
    environ = os.environ if environ is None else environ
    target = httpx.URL(url)
    named = _variable(environ, f"{target.scheme}_proxy") or _variable(environ, "all_proxy")
    excluded = _variable(environ, "no_proxy")
    if not named or is_this_machine(target.host) or (excluded and _is_excluded(target, environ[excluded])):
        return None
    return Proxy(named, _usable_proxy(named, environ[named].strip()))


def client_settings(url: str, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The arguments that make a client of httpx (or httpx2, openai's) take the right way to `url`, and to no other."""
    if proxy := proxy_for(url, environ):
        return {"proxy": proxy.url}
    if httpx.URL(url).scheme == "http":
        return {"trust_env": False, "verify": _certificates()}
    # trust_env=False would also leave out SSL_CERT_FILE. A proxy that is given replaces those of the environment, and
    # the mount replaces it.
    return {"proxy": "http://unused.invalid", "mounts": {"all://": None}}


def ask(url: str, *, timeout_s: float, headers: Mapping[str, str] | None = None, body: Any = None) -> httpx.Response:
    """A single request: a GET, or a POST of a JSON body. Raises `httpx.HTTPError`; `UserError` for a bad proxy."""
    with httpx.Client(timeout=timeout_s, **client_settings(url)) as client:
        return client.request("GET" if body is None else "POST", url, headers=headers, json=body)


def detour(url: str, environ: Mapping[str, str] | None = None) -> str:
    """What a message about a failed request adds if a proxy may have caused the failure or written the answer."""
    if not (proxy := proxy_for(url, environ)):
        return ""
    host = httpx.URL(url).host
    return f"; the request went through the proxy {proxy}: if {host} can be reached without it, add it to NO_PROXY"


def direct_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that keep a child process from asking a proxy for this machine's addresses; none without a proxy.

    Both spellings are set, because programs differ in the one that they prefer.
    """
    if not any(_variable(environ, f"{scheme}_proxy") for scheme in ("http", "https", "all")):
        return {}
    given = environ.get(_variable(environ, "no_proxy") or "", "")
    entries = [entry.strip() for entry in given.split(",") if entry.strip()]
    if "*" not in entries:
        entries += [*LOOPBACKS, socket.gethostname(), *own_addresses()]
    text = ",".join(dict.fromkeys(entries))
    return {"no_proxy": text, "NO_PROXY": text}


@functools.cache
def _certificates() -> ssl.SSLContext:
    """For the clients of http addresses, which need it where they are sent on to https: reading it takes 25 ms."""
    return httpx.create_ssl_context(trust_env=False)


def _variable(environ: Mapping[str, str], name: str) -> str | None:
    """The variable of this name that counts, None if it is unset or empty."""
    name = name if name in environ else name.upper()
    return name if environ.get(name, "").strip() else None


def _is_excluded(target: httpx.URL, no_proxy: str) -> bool:
    entries = [entry.rpartition("://")[2] for entry in re.split(r"[,\s]+", no_proxy) if entry]
    if "*" in entries:
        return True
    if (address := _address(target.host)) is not None:
        for entry in entries:
            with suppress(ValueError):  # not a network
                if address in ip_network(entry.strip("[]"), strict=False):
                    return True
    spellings = (f".{target.host}", f".{target.host}:{target.port or DEFAULT_PORTS[target.scheme]}")
    names = [f".{name}" for entry in entries if (name := entry.lower().lstrip("*."))]
    return any(spelling.endswith(name) for spelling in spellings for name in names)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """The numeric address in `host`, in any spelling that a system takes (127.1); None for a name."""
    with suppress(OSError):
        return IPv4Address(socket.inet_aton(host))
    with suppress(ValueError):
        address = ip_address(host.strip("[]").partition("%")[0])
        return getattr(address, "ipv4_mapped", None) or address
    return None


def _usable_proxy(variable: str, text: str) -> str:
    url = text if "://" in text else f"http://{text}"
    _, secret, shown = text.rpartition("@")
    try:
        parsed = parse_address(url, PROXY_SCHEMES)
        if parsed.path not in ("", "/"):
            raise ValueError(f"{parsed.path} is no part of one")
    except ValueError as error:
        # The reason may quote a part of a password that is not escaped.
        reason = "special characters in its user or password need %-escapes" if secret else error
        raise UserError(
            f"{variable}={shown!r} is not a proxy's address ({reason}); expected e.g. http://proxy.example:3128 or "
            "socks5://proxy.example:1080. Correct it, or unset it"
        ) from None
    if parsed.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise UserError(f"{variable}={shown!r} names a SOCKS proxy, which needs a package: pip install socksio")
    return url
