"""The errors of the Hugging Face hub's client as `UserError`, in one line with a remedy."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from flashrag.errors import UserError
from flashrag.system.network import detour


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
