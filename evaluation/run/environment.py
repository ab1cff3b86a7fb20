"""What a run ran on: versions, git revision, machine. Facts for whoever repeats it; nothing secret, no variables."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("flashrag", "httpx", "openai", "pydantic", "scipy", "tokenizers", "transformers", "vllm", "sglang")


def describe_environment() -> dict[str, Any]:
    return {
        "python": sys.version.split()[0],
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "git": _git(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cpu_count": os.cpu_count(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Revision, and whether tracked files differ from it; None outside a checkout or without git."""
    try:
        revision = _run_git("rev-parse", "HEAD")
        return {"revision": revision, "dirty": bool(_run_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _run_git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
