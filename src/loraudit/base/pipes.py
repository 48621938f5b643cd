"""Print into a pipe whose reader leaves early, as `head` does: what it does not read is dropped.

Otherwise Python raises BrokenPipeError at the next print, and a command would end with an error, or
before its work is done.
"""

import io
import os
import stat
import sys


class _Pipe(io.FileIO):
    """A pipe to write to; `left` tells whether its reader has left."""

    left = False

    def write(self, data) -> int:
        if not self.left:
            try:
                return super().write(data) or 0
            except BrokenPipeError:
                self.left = True
        return len(data)


def let_the_reader_leave() -> None:
    """Drop what is printed once nobody reads it any more, if stdout is a pipe."""
    stdout = sys.__stdout__
    if stdout is None or sys.stdout is not stdout:  # closed, or a test's
        return
    if not stat.S_ISFIFO(os.fstat(stdout.fileno()).st_mode):
        return
    pipe = io.BufferedWriter(_Pipe(stdout.fileno(), "w", closefd=False))
    sys.stdout = io.TextIOWrapper(pipe, encoding=stdout.encoding, errors=stdout.errors)


def reader_left() -> bool:
    """Tell whether nobody reads any more what is printed."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Pipe) and raw.left
