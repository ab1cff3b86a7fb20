"""Files of the Hugging Face hub: what it states of them, and their download; its errors as `UserError`, in one line.

huggingface_hub fetches, resumes a broken download, and takes a mirror from HF_ENDPOINT.
"""

import errno
import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flashrag.errors import UserError
from flashrag.system.network import detour

ANSWER_S = 5.0
SHA256_DIGITS = 64  # the hub's etag of a large file is its sha256; that of a small one is git's sha1


class Stated(NamedTuple):
    """What the hub says of a file."""

    size_bytes: int
    commit: str | None
    etag: str

    @property
    def sha256(self) -> str | None:
        return self.etag if len(self.etag) == SHA256_DIGITS else None


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository; `endpoint` is that of the hub or a mirror, None: HF_ENDPOINT, or the hub."""

    repository: str
    repo_type: str
    revision: str
    name: str
    endpoint: str | None
    remedy: str

    def ask(self) -> Stated:
        """What the hub, or the mirror, states of the file; raises `UserError` if it cannot be fetched."""
        from huggingface_hub import get_hf_file_metadata

        with self._told():
            stated = get_hf_file_metadata(self._url, endpoint=self.endpoint, timeout=ANSWER_S)
        return Stated(stated.size or 0, stated.commit_hash, stated.etag or "")

    def download(self, folder: Path) -> Path:
        """The file below `folder`, which keeps a broken download; its size is checked. Raises `UserError`."""
        from huggingface_hub import hf_hub_download

        with self._told():
            return Path(hf_hub_download(self.repository, self.name, local_dir=folder, **self._where))

    @property
    def _where(self) -> dict[str, Any]:
        return {"repo_type": self.repo_type, "revision": self.revision, "endpoint": self.endpoint}

    @property
    def _url(self) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repository, self.name, **self._where)

    def _told(self) -> AbstractContextManager[None]:
        source = f"{self.repository} at {self.revision!r}"
        return hub_errors(self.name, self.remedy, source=source, url=self._url)


def check_file(path: Path, stated: Stated) -> None:
    """Raise `UserError` unless the file has the size and the hash that are stated; such a file is removed."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if stated.sha256:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            found = hashlib.file_digest(file, lambda: hashlib.sha1(b"blob %d\0" % size)).hexdigest()
    if (size, found) != (stated.size_bytes, stated.etag):
        path.unlink()
        raise UserError(
            f"{path} came with {size} bytes and the hash {found}, the hub states {stated.size_bytes} and "
            f"{stated.etag}; run the command again"
        )


@contextmanager
def hub_errors(what: str, remedy: str, *, source: str = "the hub", url: str | None = None) -> Iterator[None]:
    """Say of `what` that it cannot be fetched from `source`, and why; `url` tells whether a proxy stands between."""
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    by_proxy = detour(url or constants.ENDPOINT)
    try:
        yield
    except HfHubHTTPError as error:
        # The hub's client explains on several lines; the last ones are addresses and ids.
        reason = " ".join(line.strip() for line in str(error).splitlines()[:4] if line.strip())
        raise UserError(f"{what} cannot be fetched from {source}: {reason}{by_proxy}") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, httpx.HTTPError, OSError, ValueError, ImportError) as error:
        # The last two: httpx cannot use one of the environment's proxies, even if it is not asked for this address.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{what} cannot be fetched: {reason}{by_proxy}. {remedy}") from error
