"""Fetch question sets from FlashRAG's data set repository: `python scripts/download_data.py hotpotqa --data_dir data`.

Each file is fetched by huggingface_hub (which resumes a broken download and takes a mirror from HF_ENDPOINT), then
checked before it gets its name: size and, where the hub states it, sha256; every line; the number of questions that
FlashRAG's README gives. `{data_dir}/data.lock.json` records what came the first time (trust on first use), and a later
fetch must match it. No checksum of the repository is shipped with this project: none could be verified here.
Does not cover: original files (convert_data.py), corpora and indexes.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make the repository's own folders importable
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from pydantic import TypeAdapter, ValidationError

from flashrag.dataset import DATASETS, read_questions
from flashrag.errors import UserError, exit_on_user_error
from flashrag.system.arguments import CommandParser
from flashrag.system.files import staged
from flashrag.system.network import detour, direct_environment

REPOSITORY = "RUC-NLPIR/FlashRAG_datasets"
ALL = "all"
_LOCK = "data.lock.json"
_SHA256_DIGITS = 64  # the hub's etag of a large file is its sha256; that of a small one is git's, which says less


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
    parser = CommandParser(
        prog="scripts/download_data.py", description="Download question sets from FlashRAG's data set repository."
    )
    add = parser.add_argument_group("what to download").add_argument
    add("datasets", nargs="+", metavar="DATASET", help=f"{', '.join(DATASETS)}, or {ALL}")
    add("--split", action="append", metavar="NAME", help="split; may be repeated (default: the one that is evaluated)")
    add("--revision", default="main", metavar="NAME", help="branch, tag or commit of the repository")
    add("--endpoint", metavar="URL", help="address of the hub or of a mirror (default: HF_ENDPOINT, or the hub)")
    add = parser.add_argument_group("where it is kept").add_argument
    add("--data_dir", type=Path, default=Path("data"), help="folder: {data_dir}/{dataset}/{split}.jsonl")
    add("--lock", type=Path, help=f"file with sizes and hashes to check against (default: {{data_dir}}/{_LOCK})")
    options = parser.parse_args(argv)
    names = list(wanted_files(options.datasets, options.split))
    os.environ.update(direct_environment(os.environ))  # for a mirror on this machine
    lock_path = options.lock or options.data_dir / _LOCK
    for name in names:
        print(fetch(name, options.data_dir, lock_path, options.revision, options.endpoint), flush=True)
    return 0


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
        if locked is None:
            rows = len(read_questions(target))
            return f"{target}: {rows} questions, there already; not fetched by this command, left as it is"
        _check_locked(describe(target, None), locked, target, "remove it to fetch it again")
        return f"{target}: {locked.rows} questions, there already, sha256 as in {lock_path}"
    downloads = data_dir / ".download"  # a broken download stays here, to be resumed
    path, commit, stated_sha256 = _download(name, downloads, revision, endpoint)
    try:
        fetched = describe(path, commit)
        if stated_sha256 not in (None, fetched.sha256):
            raise UserError(
                f"{name} has sha256 {fetched.sha256}; the hub states {stated_sha256}; run the command again"
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


def describe(path: Path, revision: str | None) -> LockedFile:
    """Size, hash and rows of a file, each line of which is read."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return LockedFile(path.stat().st_size, sha256, len(read_questions(path)), revision)


def _check_locked(found: LockedFile, locked: LockedFile, path: Path, remedy: str) -> None:
    if (found.size_bytes, found.sha256) != (locked.size_bytes, locked.sha256):
        expected = f"expected {locked.size_bytes} bytes with {locked.sha256}"
        raise UserError(f"{path} has {found.size_bytes} bytes with sha256 {found.sha256}; {expected}; {remedy}")


def _download(name: str, folder: Path, revision: str, endpoint: str | None) -> tuple[Path, str | None, str | None]:
    """The file below `folder`, its size checked; the commit it is from, and the sha256 where the hub states one."""
    import httpx
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    where = {"repo_type": "dataset", "revision": revision, "endpoint": endpoint}
    url = hf_hub_url(REPOSITORY, name, **where)
    by_proxy = detour(url)
    try:
        stated = get_hf_file_metadata(url, endpoint=endpoint)
        path = Path(hf_hub_download(REPOSITORY, name, local_dir=folder, **where))
    except HfHubHTTPError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{name} cannot be fetched from {REPOSITORY} at {revision!r}: {reason}{by_proxy}") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, httpx.HTTPError, OSError, ValueError, ImportError) as error:
        # The last two: httpx cannot use one of the environment's proxies, even if it is not asked for this address.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        remedy = "Without access to the hub, name a mirror (--endpoint, HF_ENDPOINT), copy the file to the data folder"
        remedy = f"{remedy}, or convert the original (scripts/convert_data.py)"
        raise UserError(f"{name} cannot be fetched: {reason}{by_proxy}. {remedy}") from error
    return path, stated.commit_hash, stated.etag if len(stated.etag or "") == _SHA256_DIGITS else None


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
