"""Why a trainer failed, out of its log: the first exception of the process that broke, not its wrapper's.

An engine that cannot start raises in its own process; the process that waits for it then says "initialization failed",
and Ray wraps that once more. All of them print into one log, each line behind the names of its processes:

    (vLLMHttpServer pid=17) (EngineCore pid=29) ERROR 11-26 02:36:01 [core.py:1] ValueError: no such dtype
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from flashrag.system.processes import TAIL_LINES, read_log
from verl_search.trainer.run_folder import last_step

LINES_BEFORE, FRAMES_SHOWN, LAST_LINES = 3, 4, 6
KILLED = -9
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PROCESS = re.compile(r"^\((?:([^()]*) )?pid=(\d+)[^()]*\) ?")
_LOGGED = re.compile(r"^(?:ERROR|WARNING|INFO|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\] ?")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(: .*|$)")
# Ray puts the traceback of the other process between its own and the exception.
_OF_RAY = ("ray.exceptions.RayTaskError(", "ray::")
_DEAD_ACTOR = re.compile(r"\bpid: (\d+)")
# As the raylet of Ray 2.60 tells it, once a minute.
_KILLED_BY_RAY = re.compile(r"(\d+) Workers \(tasks / actors\) killed due to memory pressure")
_BEGINNING = "Traceback (most recent call last):"


class Line(NamedTuple):
    """A line of the log without colours, and the process that printed it ("" for the trainer's own)."""

    process: str
    pid: str
    text: str


@dataclass(frozen=True, slots=True)
class Cause:
    """The process that broke, its exception or last word, and the lines that it printed around it."""

    process: str
    told: str
    around: tuple[str, ...]


def parse_line(raw: str) -> Line:
    """A line as it was printed, without what the log's writers put before it.

    >>> parse_line("\\x1b[36m(Server pid=1, ip=::1)\\x1b[0m (Engine pid=2) ERROR 11-26 02:36:01 [a.py:1] KeyError: 1")
    Line(process='Engine', pid='2', text='KeyError: 1')
    """
    text, process, pid = _COLOUR.sub("", raw), "", ""
    while match := _PROCESS.match(text):
        text, process, pid = text[match.end() :], match[1] or process or "a process", match[2]
    return Line(process, pid, _LOGGED.sub("", text))


def find_cause(log: str, reason: str) -> Cause | None:
    """The first traceback of another process than the trainer's own, else the last words of the actor that died, else
    the trainer's first traceback; None if the log has none of these. `reason` is what the trainer said at its end.
    """
    lines = [parse_line(raw) for raw in log.splitlines()]
    own = None
    for cause in _tracebacks(lines):
        if cause.process:
            return cause
        own = own or cause
    dead = _DEAD_ACTOR.search(reason)
    words = [line for line in lines if dead and line.pid == dead[1] and line.text.strip()][-LAST_LINES:]
    return Cause(words[-1].process, words[-1].text, tuple(line.text for line in words)) if words else own


def _tracebacks(lines: Sequence[Line]) -> Iterator[Cause]:
    for start, (process, pid, text) in enumerate(lines):
        if text.strip() == _BEGINNING:
            # Of a long log only what one traceback needs: an outage leaves hundreds of them.
            earlier = (lines[at].text for at in range(start - 1, -1, -1) if lines[at].pid == pid)
            later = (lines[at].text for at in range(start + 1, len(lines)) if lines[at].pid == pid)
            before = [*islice(earlier, LINES_BEFORE)][::-1]
            frames, exception = _frames_and_exception(later)
            if exception:
                yield Cause(process, exception, (*before, *frames[-FRAMES_SHOWN:], exception))


def _frames_and_exception(texts: Iterable[str]) -> tuple[list[str], str]:
    frames: list[str] = []
    for text in texts:
        if text[:1] in (" ", "|", "+", "") or text.startswith(_OF_RAY):
            frames.append(text)
        else:
            return frames, text if _EXCEPTION.match(text) else ""
    return frames, ""


def describe_failure(save_path: Path, log_path: Path, log_start: int, returncode: int, reason: str) -> str:
    """What is told about a trainer that failed: its exit, the first exception, what was saved, where the log is.

    `reason` is the trainer's own last word, "" if it left none; `log_start` is the byte where its log begins.
    """
    return "\n".join(_describe(save_path, log_path, log_start, returncode, reason))


def _describe(save_path: Path, log_path: Path, log_start: int, returncode: int, reason: str) -> Iterator[str]:
    log = read_log(log_path, log_start)
    cause = find_cause(log, reason)
    if returncode == KILLED:
        yield "the trainer was killed (signal 9), as the kernel does when memory runs out"
    else:
        yield f"the trainer ended with exit code {returncode}" + (f": {_short(reason)}" if reason else "")
    if cause is not None and cause.told not in reason:
        yield f"it began in {cause.process or 'the trainer'} with: {cause.told}"
    around = cause.around if cause else log.splitlines()[-TAIL_LINES:]
    yield from (f"    {line}" for line in around)
    if memory := memory_ran_out(log):
        yield memory
    yield what_a_repeat_does(save_path)
    yield f"The whole log: {log_path}"


def memory_ran_out(log: str) -> str:
    """A sentence about the processes that Ray ended because the machine's memory was full; "" if it ended none."""
    ended = sum(int(count) for count in _KILLED_BY_RAY.findall(log))
    if not ended:
        return ""
    return (
        f"Ray ended {ended} processes, because the machine's memory was nearly full: end what else runs there, or give "
        "the run less to hold; --check tells what it needs."
    )


def _short(reason: str) -> str:
    line = " ".join(_COLOUR.sub("", reason).split())
    return line if len(line) <= 300 else line[:299] + "…"


def what_a_repeat_does(save_path: Path) -> str:
    """The sentence about the same command, given again."""
    step = last_step(save_path)
    if step is None:
        return "No checkpoint was saved: the same command starts from the beginning."
    return f"The checkpoint of step {step} is in {save_path}: the same command resumes from it."
