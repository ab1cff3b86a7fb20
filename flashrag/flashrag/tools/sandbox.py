"""Runs the Python code of a model where it can do no harm, and for a bounded time.

confine.py and the kernel confine the code, and killing it ends every process that it started. `check` refuses a machine
that cannot do this; code is never run without it. There are limits on wall-clock and processor time, on the memory and
the number of processes, on files, and on output. Does not cover: packages (the interpreter has its standard library
alone), sessions (each call begins anew).
"""

import asyncio
import contextlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flashrag.errors import ToolError, UserError
from flashrag.tools import confine

MIB = 1 << 20
# The interpreter needs these paths of the host beside its own folder; those that do not exist are left out.
FOLDERS = ("/usr", "/bin", "/lib", "/lib64")
FILES = ("/etc/ld.so.cache", "/dev/null", "/dev/urandom")
# Passed as source, because the code's user may not be allowed to read this file.
CONFINE_SOURCE = Path(confine.__file__).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """The most that one run may use; `memory_bytes` is for each of its processes."""

    timeout_s: float = 10.0
    memory_bytes: int = 256 * MIB
    max_processes: int = 8
    disk_bytes: int = 16 * MIB
    max_output_bytes: int = 16_384


class Ended(StrEnum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    FLOODED = "flooded"


@dataclass(frozen=True, slots=True)
class Run:
    """The code's output, standard output and error together, and how it ended."""

    output: str
    ended: Ended


class PythonSandbox:
    """Runs code, at most `max_concurrent` at a time; safe for any number of coroutines of one event loop."""

    def __init__(self, limits: SandboxLimits | None = None, max_concurrent: int | None = None):
        self.limits = limits or SandboxLimits()
        self._room = asyncio.Semaphore(max_concurrent or os.cpu_count() or 1)
        self._python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))

    async def run(self, code: str) -> Run:
        """Run the code to its end, or to one of its limits. Raises `ToolError` when it could not be run at all."""
        async with self._room:
            process = await self._start()
            output = bytearray()
            try:
                async with asyncio.timeout(self.limits.timeout_s):
                    return await self._finish(process, code, output)
            except TimeoutError:
                return Run(_text(output), Ended.TIMED_OUT)
            finally:
                await _end(process)

    async def check(self) -> None:
        """Raise `UserError` unless code can be confined on this machine."""
        try:
            run = await self.run("print(6 * 7)")
        except ToolError as error:
            raise UserError(
                f"the python tool cannot confine code on this machine: {error}. It needs Linux 5.12 or newer with user "
                "namespaces: sysctl user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns=0 "
                "where there is such a key, and in a container a seccomp profile that allows unshare and mount. "
                "Code is never run without this: leave the python tool off here"
            ) from error
        if run != Run("42\n", Ended.SUCCEEDED):
            raise UserError(f"the python tool does not work on this machine: `print(6 * 7)` {run.ended}: {run.output}")

    async def _start(self) -> asyncio.subprocess.Process:
        limits = self.limits
        settings = {
            "parent_pid": os.getpid(),
            "python": self._python,
            "folders": [*FOLDERS, *_outside(FOLDERS, sys.base_prefix)],
            "files": FILES,
            "memory_bytes": limits.memory_bytes,
            "max_processes": limits.max_processes,
            "disk_bytes": limits.disk_bytes,
            "cpu_s": int(limits.timeout_s) + 1,
        }
        pipe = asyncio.subprocess.PIPE
        try:
            return await asyncio.create_subprocess_exec(
                *(self._python, "-I", "-S", "-c", CONFINE_SOURCE, json.dumps(settings)),
                stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT, cwd="/", env={}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ToolError(f"starting {self._python}: {error}") from error

    async def _finish(self, process: asyncio.subprocess.Process, code: str, output: bytearray) -> Run:
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        process.stdin.write(code.encode("utf-8", errors="replace"))
        process.stdin.close()
        while chunk := await process.stdout.read(MIB):
            output += chunk
            if len(output) > self.limits.max_output_bytes and process.returncode != confine.SETUP_FAILED:
                del output[self.limits.max_output_bytes :]
                return Run(_text(output), Ended.FLOODED)
        match await process.wait():
            case 0:
                return Run(_text(output), Ended.SUCCEEDED)
            case 1:
                return Run(_text(output), Ended.FAILED)
            case confine.SETUP_FAILED:
                raise ToolError(_text(output).strip())
            case other:
                raise ToolError(f"the sandbox was killed from outside (exit code {other})")


def check_sandbox() -> None:
    """Raise `UserError` unless code can be confined on this machine, whether an event loop runs here or not."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(lambda: asyncio.run(PythonSandbox().check())).result()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the program if it still runs, and wait for its end: then nothing holds the other end of its output."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    assert process.stdout is not None, "a pipe"
    while await process.stdout.read(MIB):
        pass
    await process.wait()


def _outside(folders: tuple[str, ...], path: str) -> list[str]:
    return [] if Path(path).is_relative_to("/usr") or path in folders else [path]


def _text(output: bytearray) -> str:
    return output.decode("utf-8", errors="replace")
