"""The code blocks of README.md, CONTRIBUTING.md and docs/*.md, and the shell commands in them.

A block that cannot run here says why in the line before it: `<!-- not run here: gpu|hub|cluster|long -->`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REASONS = ("gpu", "hub", "cluster", "long")
SHELL = "bash"
LANGUAGES = (SHELL, "python", "yaml", "text")
_FENCE = re.compile(r"(\s*)```(\S*)\s*")
_MARK = re.compile(r"<!-- not run here: (.*) -->")
_QUOTED_OR_PLAIN = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|(?<=\S)\#|[^'"\\#])*\\?""")
_ASSIGNMENT = re.compile(r"(?:export(?: \w+=\S*)+|\w+=(?:'[^']*'|\"[^\"]*\"|\S*))")
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block: the page, relative to the repository, the line of its first text, and why it is not run here."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a shell block, on one line and without comments.

    `settings` are the assignments that the page has printed above it, `output` the comment lines below it.
    """

    page: str
    line: int
    text: str
    not_run: str | None = None
    settings: tuple[str, ...] = ()
    output: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    @property
    def script(self) -> str:
        """What to give a shell: the command, after the page's assignments where it reads a variable."""
        return "\n".join([*self.settings, self.text]) if "$" in self.text else self.text


@cache
def pages() -> dict[str, str]:
    """The text of each page, by its path in the repository."""
    paths = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


@cache
def blocks() -> tuple[Block, ...]:
    return tuple(block for page, text in pages().items() for block in _blocks(page, text))


@cache
def commands() -> tuple[Command, ...]:
    return tuple(command for page in pages() for command in _commands([b for b in blocks() if b.page == page]))


def all_printed(page: str, start: str) -> list[Command]:
    """The commands of a page that begin so."""
    return [each for each in commands() if each.page == page and each.text.startswith(start)]


def printed(page: str, start: str) -> Command:
    """The command of a page that reads so, or the one that begins so."""
    found = all_printed(page, start)
    (command,) = [each for each in found if each.text == start] or found
    return command


def my_reward() -> str:
    """The reward that docs/training.md prints."""
    (block,) = [each for each in blocks() if each.page == "docs/training.md" and "def reward(" in each.text]
    return block.text


def inline_code() -> Iterator[tuple[str, str]]:
    """Each `text` between backticks outside of blocks, with its page."""
    for page, text in pages().items():
        prose = re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.MULTILINE | re.DOTALL)
        for match in _INLINE.finditer(prose):
            yield page, match.group(1)


def _blocks(page: str, text: str) -> Iterator[Block]:
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.fullmatch(lines[number])
        number += 1
        if fence is None:
            continue
        mark = _MARK.fullmatch(lines[number - 2].strip()) if number > 1 else None
        end = next(n for n in range(number, len(lines)) if lines[n].strip() == "```")
        body = "\n".join(line.removeprefix(fence.group(1)) for line in lines[number:end])
        yield Block(page, number + 1, fence.group(2), body, mark.group(1) if mark else None)
        number = end + 1


def _commands(of_page: list[Block]) -> Iterator[Command]:
    settings: list[str] = []
    for block in of_page:
        if block.language != SHELL:
            continue
        for line, text, output in statements(block):
            if _ASSIGNMENT.fullmatch(text):
                settings.append(text)
            else:
                yield Command(block.page, line, text, block.not_run, tuple(settings), output)


def statements(block: Block) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Each statement with its line and the comment lines after it; a loop is one statement."""
    pending, started, ready = "", 0, None
    output: list[str] = []
    for number, raw in enumerate(block.text.splitlines(), start=block.line):
        line = without_comment(raw)
        if not line and not pending:
            output += [raw.strip().removeprefix("#").strip()] if raw.strip() else []
            continue
        if not pending:
            if ready:
                yield *ready, tuple(output)
            ready, output, started = None, [], number
        pending += line.removesuffix("\\").rstrip() if line.endswith("\\") else line
        if line.endswith("\\"):
            pending += " "
        elif re.match(r"(for|while|if)\b", pending) and not re.search(r"\b(done|fi)$", pending):
            pending += "\n"
        else:
            ready, pending = (started, re.sub(r"(?<=\S) +(?=\S)", " ", pending)), ""
    assert not pending, f"{block}: the last command is not complete: {pending}"
    if ready:
        yield *ready, tuple(output)


def without_comment(line: str) -> str:
    """The line up to a `#` that begins a comment, without the blanks around.

    >>> without_comment("curl -d '#1' host/a#b   # the rest")
    "curl -d '#1' host/a#b"
    """
    match = _QUOTED_OR_PLAIN.match(line)
    return match.group().strip() if match else ""
