"""Writing a file or a folder so that it is either wholly there or not there at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to; it becomes `target` when the block ends without an error.

    What stood at `target` is replaced. On an error, Ctrl-C included, the unfinished work is removed and `target` stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        staging = holder / target.name
        yield staging
        if target.is_dir():  # a folder cannot be renamed over a folder that holds files
            target.rename(holder / "replaced")
        staging.replace(target)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
