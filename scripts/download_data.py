"""Fetch question sets from FlashRAG's data set repository: `python scripts/download_data.py hotpotqa --data_dir data`.
`download_data.py prompts` fetches prompts instead (published_prompts.py), `download_data.py retrieval` a corpus, its
index and its encoder (published_retrieval.py).

Each file is fetched by huggingface_hub (which resumes a broken download and takes a mirror from HF_ENDPOINT), then
checked before it gets its name: size and, where the hub states it, sha256; every line; the number of questions that
FlashRAG's README gives. `{data_dir}/data.lock.json` records what came the first time (trust on first use), and a later
fetch must match it. No checksum of the repository is shipped with this project: none could be verified here. The hub is
asked for every missing file before the first is fetched.
Does not cover: original files (convert_data.py).
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make the repository's own folders importable
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pydantic import TypeAdapter, ValidationError

from flashrag.dataset import DATASETS, read_questions
from flashrag.errors import UserError, exit_on_user_error
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
    free_bytes,
    gib,
    output_folder,
    show_check,
)
from flashrag.system.arguments import CommandParser
from flashrag.system.files import staged
from flashrag.system.network import direct_environment
from scripts import published_prompts, published_retrieval
from scripts.hub import HubFile, Stated
from scripts.published_prompts import PROGRAM

REPOSITORY = "RUC-NLPIR/FlashRAG_datasets"
REMEDY = (
    "Without access to the hub, name a mirror (--endpoint, HF_ENDPOINT), copy the file to the data folder, or convert "
    "the original (scripts/convert_data.py)"
)
ALL = "all"
_LOCK = "data.lock.json"


@dataclass(frozen=True, slots=True)
class LockedFile:
    """What is known of a file that was fetched and checked."""

    size_bytes: int
    sha256: str
    rows: int
    revision: str | None


_LOCKED_FILES = TypeAdapter(dict[str, LockedFile])


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    for other in (published_prompts, published_retrieval):
        if list(arguments[:1]) == [other.NAME]:
            return other.main(arguments[1:])
    parser = CommandParser(
        prog=PROGRAM,
        description="Download question sets from FlashRAG's data set repository.",
        epilog=f"Prompts that other projects published: {PROGRAM} {published_prompts.NAME} --help. Corpus, index and "
        f"encoder: {PROGRAM} {published_retrieval.NAME} --help.",
    )
    add = parser.add_argument_group("what to download").add_argument
    add("datasets", nargs="+", metavar="DATASET", help=f"{', '.join(DATASETS)}, or {ALL}")
    add("--split", action="append", metavar="NAME", help="split; may be repeated (default: the one that is evaluated)")
    add("--revision", default="main", metavar="NAME", help="branch, tag or commit of the repository")
    add("--endpoint", metavar="URL", help="address of the hub or of a mirror (default: HF_ENDPOINT, or the hub)")
    add = parser.add_argument_group("where it is kept").add_argument
    add("--data_dir", type=Path, default=Path("data"), help="folder: {data_dir}/{dataset}/{split}.jsonl")
    add("--lock", type=Path, help=f"file with sizes and hashes to check against (default: {{data_dir}}/{_LOCK})")
    add("--check", action="store_true", help=CHECK_HELP)
    facts = DownloadFacts(arguments, **vars(parser.parse_args(arguments)))
    os.environ.update(direct_environment(os.environ))  # for a mirror on this machine
    findings = examine(RULES, facts)
    if facts.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    for name in facts.names:
        print(fetch(name, facts.data_dir, facts.lock_path, facts.revision, facts.endpoint), flush=True)
    return 0


class DownloadFacts(MachineFacts):
    """What there is to know about the files that are wanted."""

    def __init__(
        self,
        arguments: Sequence[str],
        datasets: Sequence[str],
        split: Sequence[str] | None,
        revision: str,
        endpoint: str | None,
        data_dir: Path,
        lock: Path | None,
        check: bool,
    ) -> None:
        self.arguments, self.check = arguments, check
        self.datasets, self.splits = datasets, split
        self.revision, self.endpoint = revision, endpoint
        self.data_dir, self.lock_path = data_dir, lock or data_dir / _LOCK

    @fact
    def names(self) -> list[str]:
        return list(wanted_files(self.datasets, self.splits))

    @fact
    def lock(self) -> dict[str, LockedFile]:
        return read_lock(self.lock_path)

    @fact
    def present(self) -> dict[str, str]:
        """What there is to say of each file that is there already; raises `UserError` for one that has changed."""
        there = [name for name in self.names if (self.data_dir / name).exists()]
        return {name: _describe_present(self.data_dir / name, self.lock.get(name), self.lock_path) for name in there}

    @fact
    def stated(self) -> dict[str, Stated | UserError]:
        """What the hub says of each file that is missing."""

        def ask(name: str) -> Stated | UserError:
            try:
                return _on_hub(name, self.revision, self.endpoint).ask()
            except UserError as reason:
                return reason

        missing = [name for name in self.names if name not in self.present]
        with ThreadPoolExecutor(max(1, len(missing))) as pool:
            return dict(zip(missing, pool.map(ask, missing), strict=True))

    @property
    def needed_bytes(self) -> int:
        return sum(stated.size_bytes for stated in self.stated.values() if isinstance(stated, Stated))


def files_can_be_fetched(facts: DownloadFacts) -> Iterator[Finding]:
    names_of: dict[str, list[str]] = {}  # by reason, which is often the same for all
    for name, reason in facts.stated.items():
        if isinstance(reason, UserError):
            names_of.setdefault(str(reason).removeprefix(name), []).append(name)
    yield from (error(f"{', '.join(names)}{reason}") for reason, names in names_of.items())


def files_have_room(facts: DownloadFacts) -> Iterator[Finding]:
    yield from output_folder("--data_dir", facts.data_dir, lambda: facts.needed_bytes, "the files")


RULES: Mapping[str, Rule[DownloadFacts]] = {
    "data.hub": files_can_be_fetched,
    "data.folder": files_have_room,
    **MACHINE_RULES,
}


def _files(facts: DownloadFacts) -> str:
    def line(name: str) -> str:
        if name in facts.present:
            return facts.present[name]
        dataset, _, split = name.removesuffix(".jsonl").partition("/")
        stated, rows = facts.stated[name], DATASETS[dataset].rows[split]
        size = f"{stated.size_bytes} bytes" if isinstance(stated, Stated) else "cannot be fetched"
        return f"{(facts.data_dir / name).absolute()}: {size}, {rows} questions expected"

    return "".join(f"\n    {line(name)}" for name in facts.names)


PLAN: Plan[DownloadFacts] = {
    "fetch": {
        "from": lambda facts: f"{REPOSITORY} at {facts.revision}, {facts.endpoint or 'the hub or HF_ENDPOINT'}",
        "files": _files,
        "lock": lambda facts: f"{facts.lock_path.absolute()}: {len(facts.lock)} files known",
        "disk": lambda facts: f"{gib(facts.needed_bytes)} of {gib(free_bytes(facts.data_dir))} free",
    },
    "run": {"command": lambda facts: checked_command(PROGRAM, facts.arguments)},
}


def wanted_files(datasets: Sequence[str], splits: Sequence[str] | None) -> Iterator[str]:
    """The files as `dataset/split.jsonl`; raises `UserError` for a data set or split that does not exist."""
    for dataset in DATASETS if ALL in datasets else dict.fromkeys(datasets):
        if dataset not in DATASETS:
            raise UserError(f"{dataset!r} is no data set here; choose from {', '.join(DATASETS)}, {ALL}")
        spec = DATASETS[dataset]
        for split in splits or [spec.evaluated_split]:
            if split not in spec.rows:
                raise UserError(f"{dataset} has no split {split!r}; it has: {', '.join(spec.rows)}")
            yield f"{dataset}/{split}.jsonl"


def fetch(name: str, data_dir: Path, lock_path: Path, revision: str, endpoint: str | None) -> str:
    """Have one file in `data_dir`, checked; says in a line what was done. Raises `UserError`.

    `endpoint` is that of the hub or a mirror; None: HF_ENDPOINT, or the hub.
    """
    target, locked = data_dir / name, read_lock(lock_path).get(name)
    if target.exists():
        return _describe_present(target, locked, lock_path)
    downloads = data_dir / ".download"  # a broken download stays here, to be resumed
    on_hub = _on_hub(name, revision, endpoint)
    stated, path = on_hub.ask(), on_hub.download(downloads)
    try:
        fetched = describe(path, stated.commit)
        if stated.sha256 not in (None, fetched.sha256):
            raise UserError(
                f"{name} has sha256 {fetched.sha256}; the hub states {stated.sha256}; run the command again"
            )
        if locked is not None:
            _check_locked(fetched, locked, path, f"{lock_path} has another; is it another revision?")
        dataset, _, split = name.removesuffix(".jsonl").partition("/")
        if fetched.rows != (expected := DATASETS[dataset].rows[split]):
            problem = f"{name} has {fetched.rows} questions; FlashRAG's README gives {expected}"
            raise UserError(f"{problem}. Has the repository changed? Try an earlier --revision")
    except UserError:
        path.unlink()
        raise
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
    if locked is None:
        write_lock(lock_path, {**read_lock(lock_path), name: fetched})
    return f"{target}: {fetched.rows} questions, {fetched.size_bytes} bytes, sha256 {fetched.sha256}"


def _describe_present(target: Path, locked: LockedFile | None, lock_path: Path) -> str:
    """What there is to say of a file that is there; raises `UserError` if it is not the one that was fetched."""
    if locked is None:
        rows = len(read_questions(target))
        return f"{target}: {rows} questions, there already; not fetched by this command, left as it is"
    _check_locked(describe(target, None), locked, target, "remove it to fetch it again")
    return f"{target}: {locked.rows} questions, there already, sha256 as in {lock_path}"


def describe(path: Path, revision: str | None) -> LockedFile:
    """Size, hash and rows of a file, each line of which is read."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return LockedFile(path.stat().st_size, sha256, len(read_questions(path)), revision)


def _check_locked(found: LockedFile, locked: LockedFile, path: Path, remedy: str) -> None:
    if (found.size_bytes, found.sha256) != (locked.size_bytes, locked.sha256):
        expected = f"expected {locked.size_bytes} bytes with {locked.sha256}"
        raise UserError(f"{path} has {found.size_bytes} bytes with sha256 {found.sha256}; {expected}; {remedy}")


def _on_hub(name: str, revision: str, endpoint: str | None) -> HubFile:
    return HubFile(REPOSITORY, "dataset", revision, name, endpoint, REMEDY)


def read_lock(path: Path) -> dict[str, LockedFile]:
    try:
        return _LOCKED_FILES.validate_json(path.read_bytes()) if path.exists() else {}
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise UserError(
            f"{path} is no lock file of this command ({problem}); remove it, or give another --lock"
        ) from error


def write_lock(path: Path, files: dict[str, LockedFile]) -> None:
    with staged(path) as unfinished:
        unfinished.write_bytes(_LOCKED_FILES.dump_json(dict(sorted(files.items())), indent=2) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
