"""The errors that users can meet, in one hierarchy, and how a command reports them.

Every message says what was given, what was expected and what to do instead.
"""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # a shell's code for what Ctrl-C ended


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
    """Make a command's `main` report each `ReSearchError` and a Ctrl-C as one line on stderr, and return the exit code.

    The text of a `KeyboardInterrupt`, where it has one, says how to go on.
    """

    @functools.wraps(main)
    def guarded(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs) or 0
        except ReSearchError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt as interrupt:
            print(f"interrupted: {interrupt}" if interrupt.args else "interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED

    return guarded


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for the known name that is near to the given one; empty where none is.

    Near is a name that the given one abbreviates, or one that differs by a slip or two of the fingers.

    >>> did_you_mean("--rolout_n", ["--rollout_n"]), did_you_mean("--dataset", ["--dataset_name"])
    ("; did you mean '--rollout_n'?", "; did you mean '--dataset_name'?")
    >>> did_you_mean("--test_files", ["--test_freq"])
    ''
    """
    known = sorted(known)
    longer = [name for name in known if given.strip("-") and name.startswith(given)]
    near = longer or difflib.get_close_matches(given, known, n=1, cutoff=0.8)
    return f"; did you mean {near[0]!r}?" if near else ""
