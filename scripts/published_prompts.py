"""`python scripts/download_data.py prompts [NAME…]`: fetch prompts from those who published them.

published_prompts.yaml says where each stands: a file of Python source at a fixed revision, with its sha256. The texts
are read out of the source, which is never run, and written as a prompt file (docs/prompts.md).
"""

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import Formatter, Template
from typing import Any

import httpx
import yaml

from flashrag.config import read_yaml_mapping
from flashrag.errors import UserError, did_you_mean, exit_on_user_error
from flashrag.preflight import (
    CHECK_HELP,
    MACHINE_RULES,
    Finding,
    MachineFacts,
    Plan,
    Rule,
    checked_command,
    enforce,
    error,
    examine,
    fact,
    output_folder,
    show_check,
)
from flashrag.prompts import choose_prompt
from flashrag.prompts.template import escaped
from flashrag.system.arguments import CommandParser
from flashrag.system.files import staged
from flashrag.system.network import ask, detour

PROGRAM = "python scripts/download_data.py"
NAME = "prompts"
ENDPOINT = "https://raw.githubusercontent.com"
ANSWER_S = 30.0
PUBLISHED = read_yaml_mapping(Path(__file__).with_suffix(".yaml"))
_STEP = re.compile(r"(\w+)(?:\[(\d+)\])?")


@exit_on_user_error
def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog=f"{PROGRAM} {NAME}", description="Fetch prompts from those who published them.")
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"{', '.join(PUBLISHED)} (default: all)")
    add("--data_dir", type=Path, default=Path("data"), help=f"folder: {{data_dir}}/{NAME}/NAME.yaml")
    add("--endpoint", metavar="URL", default=ENDPOINT, help="address of GitHub's files, or of a mirror of them")
    add("--check", action="store_true", help=CHECK_HELP)
    facts = PromptFacts(argv, **vars(parser.parse_args(argv)))
    findings = examine(RULES, facts)
    if facts.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    for name in facts.names:
        print(facts.described(name) or write(name, facts.sources[name], facts.path(name)), flush=True)
    return 0


class PromptFacts(MachineFacts):
    """What there is to know about the prompts that are wanted."""

    def __init__(self, argv: Sequence[str], names: Sequence[str], data_dir: Path, endpoint: str, check: bool) -> None:
        self.arguments, self.folder, self.endpoint, self.check = argv, data_dir / NAME, endpoint.rstrip("/"), check
        self.wanted = names

    @fact
    def names(self) -> list[str]:
        for name in self.wanted:
            if name not in PUBLISHED:
                raise UserError(f"{name!r} is not one of {', '.join(PUBLISHED)}{did_you_mean(name, PUBLISHED)}")
        return list(dict.fromkeys(self.wanted or PUBLISHED))

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def described(self, name: str) -> str:
        """What there is to say of a file that is there already; raises `UserError` if it is no such prompt."""
        path = self.path(name)
        return f"{path}: there already, left as it is; {_usage(name, path)}" if path.exists() else ""

    @fact
    def sources(self) -> dict[str, bytes | UserError]:
        """The source of each prompt that is missing, with the listed hash, or the reason why there is none."""

        def get(name: str) -> bytes | UserError:
            try:
                return fetch(name, self.endpoint)
            except UserError as reason:
                return reason

        missing = [name for name in self.names if not self.path(name).exists()]
        with ThreadPoolExecutor(max(1, len(missing))) as pool:
            return dict(zip(missing, pool.map(get, missing), strict=True))


def sources_are_there(facts: PromptFacts) -> Iterator[Finding]:
    reasons = [reason for reason in facts.sources.values() if isinstance(reason, UserError)]
    yield from (error(str(reason)) for reason in reasons[:1])  # the others are often the same
    if len(reasons) > 1:
        yield error(f"{len(reasons) - 1} more prompts cannot be fetched from {facts.endpoint}")


def present_files_fit(facts: PromptFacts) -> None:
    for name in facts.names:
        facts.described(name)


def folder_can_be_written(facts: PromptFacts) -> Iterator[Finding]:
    yield from output_folder("--data_dir", facts.folder)


RULES: Mapping[str, Rule[PromptFacts]] = {
    "prompts.source": sources_are_there,
    "prompts.present": present_files_fit,
    "prompts.folder": folder_can_be_written,
    **MACHINE_RULES,
}
PLAN: Plan[PromptFacts] = {
    "fetch": {
        "from": lambda facts: facts.endpoint,
        "files": lambda facts: "".join(
            f"\n    {facts.described(name) or f'{facts.path(name)}: {_origin(name)}'}" for name in facts.names
        ),
    },
    "run": {"command": lambda facts: checked_command(f"{PROGRAM} {NAME}", facts.arguments)},
}


def _origin(name: str) -> str:
    entry = PUBLISHED[name]
    return f"{entry['repository']} at {entry['revision'][:12]}, {entry['file']}, sha256 {entry['sha256']}"


def _usage(name: str, path: Path) -> str:
    record = choose_prompt(PUBLISHED[name]["place"], path).record(apply_chat=False)
    return f"for {PUBLISHED[name]['methods']}: prompt_file {path}, its words have sha256 {record.sha256[:12]}"


def fetch(name: str, endpoint: str) -> bytes:
    """The source of a prompt, with the listed hash; raises `UserError`."""
    entry = PUBLISHED[name]
    url = f"{endpoint}/{entry['repository']}/{entry['revision']}/{entry['file']}"
    remedy = "name a mirror (--endpoint), or write the prompt yourself (docs/prompts.md)"
    try:
        reply = ask(url, timeout_s=ANSWER_S)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as reason:
        told = f"{str(reason) or type(reason).__name__} ({url}){detour(url)}"
        raise UserError(f"{name} cannot be fetched: {told}; {remedy}") from reason
    if not reply.is_success:
        raise UserError(f"{name} cannot be fetched: {url} answered {reply.status_code}{detour(url)}; {remedy}")
    sha256 = hashlib.sha256(reply.content).hexdigest()
    if sha256 != entry["sha256"]:
        raise UserError(f"{name}: {url} has sha256 {sha256}, expected {entry['sha256']}{detour(url)}; {remedy}")
    return reply.content


def write(name: str, source: bytes | UserError, path: Path) -> str:
    """Write the prompt file; says in a line what it is."""
    assert isinstance(source, bytes), "the rules told of the others"
    with staged(path) as unfinished:
        words = yaml.safe_dump(prompt_of(name, source), sort_keys=False, allow_unicode=True, width=2**16)
        unfinished.write_text(f"# {_origin(name)}\n{words}", encoding="utf-8")
        choose_prompt(PUBLISHED[name]["place"], unfinished)
    return f"{path}: {_origin(name)}; {_usage(name, path)}"


def prompt_of(name: str, source: bytes) -> dict[str, Any]:
    """The parts of a prompt, out of the source that holds its texts."""
    entry, tree = PUBLISHED[name], ast.parse(source)
    texts = {
        key: _template(_found(tree, where["at"]), entry.get("names", {}), is_format=where.get("format", False))
        for key, where in entry["strings"].items()
    }

    def fill(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: fill(each) for key, each in part.items()}
        return Template(part).substitute(texts)

    return fill(entry["prompt"])


def _found(tree: ast.AST, path: str) -> ast.AST:
    """The expression at a dotted path of names in a source."""
    for step in path.split("."):
        matched = _STEP.fullmatch(step)
        assert matched is not None, f"{step} is no step of a path"
        tree = sorted(_bound(tree, matched[1]), key=lambda each: getattr(each, "lineno", 0))[int(matched[2] or 0)]
    return tree


def _bound(tree: ast.AST, name: str) -> Iterator[ast.AST]:
    """What a name stands for anywhere in a part of a source: a class or function, or the value that it is given."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=own) | ast.FunctionDef(name=own) if own == name:
                yield node
            case ast.Assign(targets=[ast.Name(id=own)], value=value) if own == name:
                yield value
            case ast.keyword(arg=own, value=value) if own == name:
                yield value
            case ast.Return(value=ast.expr() as value) if name == "return":
                yield value


def _template(node: ast.AST, names: Mapping[str, str], *, is_format: bool) -> str:
    """A text of Python as a template of ours: the values of an f-string, or of str.format, under our names."""
    match node:
        case ast.Constant(value=str(text)) if is_format:
            pieces = ((plain, key) for plain, key, _, _ in Formatter().parse(text))
            return "".join(escaped(plain) + (f"{{{names.get(key, key)}}}" if key else "") for plain, key in pieces)
        case ast.Constant(value=str(text)):
            return escaped(text)
        case ast.FormattedValue(value=ast.Name(id=key)):
            return f"{{{names.get(key, key)}}}"
        case ast.JoinedStr(values=parts):
            return "".join(_template(part, names, is_format=False) for part in parts)
    raise TypeError(f"{ast.dump(node)[:80]} is no text")
