"""The errors that users can meet, in one hierarchy, and how a command reports them.

Every message says what was given, what was expected and what to do instead.
"""

import functools
import sys
from collections.abc import Callable

EXIT_FAILED = 1
EXIT_USER_ERROR = 2


class ReSearchError(Exception):
    """Base of every error that this project raises on purpose; `exit_code` is that of a command that it ends."""

    exit_code = EXIT_FAILED


class UserError(ReSearchError):
    """An input that cannot be used: a flag, a file, a config value, an address. Commands exit with code 2."""

    exit_code = EXIT_USER_ERROR


class ToolError(ReSearchError):
    """A call of a tool that got no answer: a failure of ours, never of the model that called it."""


class SearchError(ToolError):
    """A search that got no answer from the retrieval server, after every allowed attempt."""


class GenerationError(ReSearchError):
    """A request that the model server did not answer, or not usably, after every allowed attempt."""


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Make a command's `main` print a `UserError` as one line on stderr and return exit code 2."""

    @functools.wraps(main)
    def guarded(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USER_ERROR

    return guarded
