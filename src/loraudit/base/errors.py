"""Errors that the user can mend: one clear sentence, and an exit code that is not zero."""

import difflib
import errno
import sys
from collections.abc import Callable, Iterable

LONGEST = 4000
"""The most characters that a message may have."""


class UserError(Exception):
    """Something the user can mend: a wrong key, value, file or network.

    The message names the key, the bad value and the legal values. It is one line: characters that
    do not print are escaped, and all after the first `LONGEST` characters is cut off.
    """

    def __init__(self, message: str):
        printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        super().__init__(printable if len(printable) <= LONGEST else f"{printable[:LONGEST]} ...")


class Misuse(UserError):
    """A command was called with options that are missing, malformed or not fit for each other."""


def unknown(what: str, value: object, legal: Iterable[str]) -> UserError:
    """Build the error for a `value` that is not in `legal`; it names the nearest legal one."""
    legal = sorted(legal)
    hint = did_you_mean(value, legal)
    return UserError(f"{what}: {value!r} is not known{hint} (legal: {', '.join(legal)})")


def did_you_mean(value: object, legal: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of the legal values; "" if none is near."""
    near = difflib.get_close_matches(str(value), list(legal), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Error numbers of a disk that is full, over quota or read-only, and of a folder that this user may
not write to."""


def run_program(main: Callable[[], None]) -> None:
    """Run a script's `main`; turn an error that the user can mend into one line and exit code 1."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except Exception as error:
        known = isinstance(error, OSError) and error.errno in UNWRITABLE
        if not known and "No space left on device" not in str(error):  # safetensors' own error
            raise
        print(f"error: the disk: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(1)
