"""Facts about a Python environment that `setup.sh` asks for: pip's settings in uv's words, and what is missing.

Standard library only: it runs before anything is installed. Sources: `pip config --help` and pip's documentation of
configuration precedence; uv's documentation of its environment variables.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Where pip reads a setting from, weakest first; `pip config list` prefixes each line with one of these.
_PIP_SECTIONS = ("global", "install", ":env:")
_PINNED = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?(?:==(?P<version>[^\s;#]+))?")


def parse_pip_config(listing: str) -> dict[str, str]:
    """The settings that `pip install` would use, from the text of `pip config list`; pip's own precedence."""
    settings: dict[str, str] = {}
    for section in _PIP_SECTIONS:
        for line in listing.splitlines():
            key, separator, value = line.partition("=")
            if separator and key.startswith(f"{section}."):
                settings[key.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    return settings


def uv_environment(pip: Mapping[str, str]) -> dict[str, str]:
    """uv's environment variables that say the same as pip's settings.

    Local folders that do not exist are left out: pip ignores them, uv stops at them.
    """
    indexes = [url for url in pip.get("extra-index-url", "").split() if _is_there(url)]
    links = [place for place in pip.get("find-links", "").split() if _is_there(place)]
    found = {
        "UV_DEFAULT_INDEX": pip.get("index-url", ""),
        "UV_INDEX": " ".join(indexes),
        "UV_INDEX_STRATEGY": "unsafe-best-match" if indexes else "",  # pip takes the best of all indexes
        "UV_FIND_LINKS": ",".join(links),
        "UV_NO_INDEX": "1" if pip.get("no-index", "").lower() in ("1", "true", "yes", "on") else "",
        "UV_INSECURE_HOST": " ".join(pip.get("trusted-host", "").split()),
        "SSL_CERT_FILE": pip.get("cert", ""),
        "SSL_CLIENT_CERT": pip.get("client-cert", ""),
        "ALL_PROXY": pip.get("proxy", ""),
    }
    return {name: value for name, value in found.items() if value}


def not_as_pinned(requirements: Iterable[str], installed: Mapping[str, str]) -> list[str]:
    """Requirements (lines of a requirements file) that are missing or installed at another version."""
    wrong = []
    for match in filter(None, (_PINNED.match(line.strip()) for line in requirements)):
        version = installed.get(_normalised(match["name"]))
        if version is None or match["version"] not in (None, version):
            wrong.append(match.group())
    return wrong


def _installed_versions() -> dict[str, str]:
    # From the folder names (name-version.dist-info): 20 times quicker than reading every METADATA file.
    folders = (folder for root in sys.path for folder in Path(root).glob("*.dist-info"))
    pairs = (folder.name.removesuffix(".dist-info").partition("-") for folder in folders)
    return {_normalised(name): version for name, _, version in pairs}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_there(place: str) -> bool:
    """Whether a local folder exists; an address on the network counts as there."""
    url = urlsplit(place)
    if url.scheme not in ("", "file"):
        return True
    return Path(unquote(url.path) if url.scheme else place).exists()


def main(arguments: list[str]) -> int:
    match arguments:
        case ["uv-settings"]:
            command = [sys.executable, "-m", "pip", "config", "list"]
            listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for name, value in uv_environment(parse_pip_config(listing)).items():
                if not os.environ.get(name):  # what the user set for uv wins
                    print(f"export {name}={shlex.quote(value)}")
        case ["check", *files]:
            lines = [line for file in files for line in Path(file).read_text(encoding="utf-8").splitlines()]
            if wrong := not_as_pinned(lines, _installed_versions()):
                print(" ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""))
                return 1
        case _:
            print("usage: environment.py uv-settings | check REQUIREMENTS…", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
