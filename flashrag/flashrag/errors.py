"""The errors that users can see, in one hierarchy, and the function by which a command reports them.

Every message names the given value and the expected one, and tells users what to do instead.
"""

import difflib
import functools
import io
import re
import sys
from collections.abc import Callable, Iterable

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # a shell's code for a command that Ctrl-C ended
_USER_IN_URL = re.compile(r"(?<=//)[^/@\s]*@")


class ReSearchError(Exception):
    """Base of every error that this project raises on purpose; a command that it ends exits with `exit_code`."""

    exit_code = EXIT_FAILED


class UserError(ReSearchError):
    """An input cannot be used: a flag, a file, a config value, an address. Commands exit with code 2."""

    exit_code = EXIT_USER_ERROR


class ToolError(ReSearchError):
    """A call of a tool got no answer. The model that called it is never at fault."""


class SearchError(ToolError):
    """A search got no answer from the retrieval server within the allowed attempts."""


class GenerationError(ReSearchError):
    """A request to the model server got no usable answer within the allowed attempts."""


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Make a command's `main` report each `ReSearchError` and a Ctrl-C as one line on stderr, and return the exit code.

    If a `KeyboardInterrupt` has a text, it tells users how to continue, and is part of the line. What the terminal's
    encoding cannot show, and what is no text in a flag or a path, is printed as an escape.
    """

    @functools.wraps(main)
    def guarded(*args: object, **kwargs: object) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
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
    """`; did you mean …?` for the known name that is most similar to the given one; empty if none is similar.

    Similar names start with the given one, or differ from it by a typo or two.

    >>> did_you_mean("--rolout_n", ["--rollout_n"]), did_you_mean("--dataset", ["--dataset_name"])
    ("; did you mean '--rollout_n'?", "; did you mean '--dataset_name'?")
    >>> did_you_mean("--test_files", ["--test_freq"])
    ''
    """
    known = sorted(known)
    longer = [name for name in known if given.strip("-") and name.startswith(given)]
    near = longer or difflib.get_close_matches(given, known, n=1, cutoff=0.8)
    return f"; did you mean {near[0]!r}?" if near else ""


def without_passwords(text: str) -> str:
    """A text without the user and password of the addresses in it, which are never saved or shown.

    >>> without_passwords("--sgl_remote_url http://me:secret@host:80")
    '--sgl_remote_url http://host:80'
    """
    return _USER_IN_URL.sub("", text)
