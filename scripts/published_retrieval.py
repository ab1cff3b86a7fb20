"""`python scripts/download_data.py retrieval [NAME…]`: fetch a published corpus, its e5 index and its encoder.

published_retrieval.yaml says where each stands: files of the Hugging Face hub at a fixed revision, with the sizes and
sha256 of the large ones. They come to where rag_serving/serving_config.yaml looks for them. What has been
fetched stays in a folder `.download` beside the target until that is whole, so that the same command, given again,
goes on.
"""

import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

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
    examine,
    fact,
    free_bytes,
    gathered,
    gib,
    output_folder,
    show_check,
)
from flashrag.system.arguments import CommandParser
from flashrag.system.files import staged
from flashrag.system.network import direct_environment
from scripts.hub import HubFile, Stated, check_file
from scripts.published_prompts import PROGRAM

NAME = "retrieval"
KEY = "--output_dir"
REMEDY = "Without access to the hub, name a mirror (--endpoint, HF_ENDPOINT), or copy the files from elsewhere"
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a file must be; None where only the hub, at the revision, says it."""

    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """Files of the hub, and what is made of them: one file, or the folder that holds them."""

    repository: str
    repo_type: Literal["dataset", "model"]
    revision: str
    files: dict[str, Pinned]
    made: Literal["unpacked", "joined", "folder"]
    path: Path
    size_bytes: int | None = None

    def is_there(self, root: Path) -> bool:
        """Whether it is below `root` already; raises `UserError` for anything else in its place."""
        target = root / self.path
        if not target.exists():
            return False
        wanted = {target: self.size_bytes}
        if self.made == "folder":
            wanted = {target / name: pinned.size_bytes for name, pinned in self.files.items() if pinned.size_bytes}
        for path, size in wanted.items():
            found = f"has {path.stat().st_size} bytes" if path.is_file() else "is no file"
            if found != f"has {size} bytes":
                raise UserError(
                    f"{path} {found}, expected {size} bytes; remove it, give another {KEY}, or name only what is "
                    "missing"
                )
        return True


PUBLISHED = TypeAdapter(dict[str, Published]).validate_python(read_yaml_mapping(Path(__file__).with_suffix(".yaml")))


@exit_on_user_error
def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog=f"{PROGRAM} {NAME}", description="Fetch a published corpus, its e5 index and its encoder."
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"{', '.join(PUBLISHED)} (default: all)")
    paths = ", ".join(str(published.path) for published in PUBLISHED.values())
    add(KEY, type=Path, default=Path(), help=f"folder of {paths} (default: this one)")
    add("--endpoint", metavar="URL", help="address of the hub or of a mirror (default: HF_ENDPOINT, or the hub)")
    add("--check", action="store_true", help=CHECK_HELP)
    facts = RetrievalFacts(argv, **vars(parser.parse_args(argv)))
    os.environ.update(direct_environment(os.environ))  # for a mirror on this machine
    findings = examine(RULES, facts)
    if facts.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    print(f"fetching: {_disk(facts)}", flush=True)
    for name in facts.names:
        if name not in facts.stated:
            shutil.rmtree(facts.downloads(name), ignore_errors=True)  # of a run that was ended before it did
            print(_line(facts, name), flush=True)
            continue
        target = facts.root / PUBLISHED[name].path
        make(PUBLISHED[name], facts.stated[name], facts.downloads(name), target, facts.endpoint)
        print(f"{target}: {name}, as {PUBLISHED[name].repository} at {PUBLISHED[name].revision}", flush=True)
    return 0


class RetrievalFacts(MachineFacts):
    """What there is to know about the files that are wanted."""

    def __init__(
        self, argv: Sequence[str], names: Sequence[str], output_dir: Path, endpoint: str | None, check: bool
    ) -> None:
        self.arguments, self.wanted, self.root = argv, names, output_dir
        self.endpoint, self.check = endpoint, check

    @fact
    def names(self) -> list[str]:
        for name in self.wanted:
            if name not in PUBLISHED:
                raise UserError(f"{name!r} is not one of {', '.join(PUBLISHED)}{did_you_mean(name, PUBLISHED)}")
        return list(dict.fromkeys(self.wanted or PUBLISHED))

    @fact
    def stated(self) -> dict[str, dict[str, Stated]]:
        """What the hub says of the files of each that is missing; raises `UserError` where they are others."""
        missing = [name for name in self.names if not PUBLISHED[name].is_there(self.root)]
        files = [(name, file) for name in missing for file in PUBLISHED[name].files]
        with ThreadPoolExecutor(max(1, len(files))) as pool:
            said = pool.map(lambda each: ask(PUBLISHED[each[0]], each[1], self.endpoint), files)
            found = dict(zip(files, said, strict=True))
        return {name: {file: found[name, file] for file in PUBLISHED[name].files} for name in missing}

    def downloads(self, name: str) -> Path:
        """The folder that keeps what has been fetched of it."""
        return (self.root / PUBLISHED[name].path).parent / ".download" / name

    @fact
    def needed_bytes(self) -> int:
        """The most that has still to be written at one time, with what is removed afterwards."""
        needed = 0
        for name, files in self.stated.items():
            sizes = [stated.size_bytes for stated in files.values()]
            more = {"unpacked": PUBLISHED[name].size_bytes or 0, "joined": sum(sizes[1:]), "folder": 0}
            there = sum(path.stat().st_size for path in self.downloads(name).rglob("*") if path.is_file())
            needed += max(0, sum(sizes) + more[PUBLISHED[name].made] - there)
        return needed


def files_have_room(facts: RetrievalFacts) -> Iterator[Finding]:
    yield from output_folder(KEY, facts.root, lambda: facts.needed_bytes, "the files")


RULES: Mapping[str, Rule[RetrievalFacts]] = {
    "retrieval.hub": gathered("stated"),
    "retrieval.folder": files_have_room,
    **MACHINE_RULES,
}


def _line(facts: RetrievalFacts, name: str) -> str:
    published = PUBLISHED[name]
    target = (facts.root / published.path).absolute()
    if name not in facts.stated:
        return f"{target}: {name}, there already"
    size = sum(stated.size_bytes for stated in facts.stated[name].values())
    made = f", {gib(published.size_bytes)} when {published.made}" if published.size_bytes else ""
    return f"{target}: {name}, {gib(size)}{made}, of {published.repository} at {published.revision}"


def _disk(facts: RetrievalFacts) -> str:
    return f"{gib(facts.needed_bytes)} of {gib(free_bytes(facts.root))} that are free in {facts.root.absolute()}"


PLAN: Plan[RetrievalFacts] = {
    "fetch": {
        "from": lambda facts: facts.endpoint or "the hub or HF_ENDPOINT",
        "files": lambda facts: "".join(f"\n    {_line(facts, name)}" for name in facts.names),
        "disk": _disk,
    },
    "run": {"command": lambda facts: checked_command(f"{PROGRAM} {NAME}", facts.arguments)},
}


def ask(published: Published, file: str, endpoint: str | None) -> Stated:
    """What the hub states of a file; raises `UserError` if it is another than the one that is pinned."""
    stated, pinned = _on_hub(published, file, endpoint).ask(), published.files[file]
    for said, wanted in ((stated.size_bytes, pinned.size_bytes), (stated.etag, pinned.sha256)):
        if wanted not in (None, said):
            raise UserError(
                f"{file} of {published.repository} at {published.revision} is another one: the hub states {said}, "
                f"expected {wanted}; is --endpoint the right mirror?"
            )
    return stated


def _on_hub(published: Published, file: str, endpoint: str | None) -> HubFile:
    return HubFile(published.repository, published.repo_type, published.revision, file, endpoint, REMEDY)


def make(
    published: Published, stated: Mapping[str, Stated], downloads: Path, target: Path, endpoint: str | None
) -> None:
    """Fetch and check the files into `downloads`, and make the target of them; raises `UserError`."""
    paths = [fetched(published, name, stated[name], downloads, endpoint) for name in stated]
    match published.made:
        case "unpacked":
            unpack(paths[0], target, published.size_bytes)
        case "joined":
            join(paths, target)
        case "folder":
            shutil.rmtree(downloads / ".cache")  # of the hub's client
            downloads.replace(target)
    shutil.rmtree(downloads, ignore_errors=True)


def fetched(published: Published, name: str, stated: Stated, downloads: Path, endpoint: str | None) -> Path:
    path = downloads / name
    if path.exists() and path.stat().st_size > stated.size_bytes:  # a join was interrupted
        with path.open("r+b") as file:
            file.truncate(stated.size_bytes)
    path = _on_hub(published, name, endpoint).download(downloads)
    check_file(path, stated)
    return path


def join(parts: Sequence[Path], target: Path) -> None:
    """Make a file of its parts. The first becomes the file: a copy of it would need its size again."""
    first, *others = parts
    with first.open("ab") as file:
        for part in others:
            with part.open("rb") as rest:
                shutil.copyfileobj(rest, file, BLOCK_BYTES)
    first.replace(target)


def unpack(archive: Path, target: Path, size_bytes: int | None) -> None:
    """Write the one file in a compressed tar archive to `target`; raises `UserError` if there is another."""
    with tarfile.open(archive, "r|*") as tar, staged(target) as unfinished:
        for member in tar:
            if member.isfile() and member.size == size_bytes:
                content = tar.extractfile(member)
                assert content is not None, "a file has content"
                with unfinished.open("wb") as file:
                    shutil.copyfileobj(content, file, BLOCK_BYTES)
        if not unfinished.exists():
            raise UserError(f"{archive} holds no file of {size_bytes} bytes; it is not the published archive")
