"""A reader that leaves early, such as `head`, is no error, and the work goes on."""

import subprocess
import sys

PROGRAM = """
import sys
from loraudit.base.pipes import let_the_reader_leave, reader_left
let_the_reader_leave()
for _ in range(3):
    print("x" * 100_000, flush=True)
print("the end, which is not flushed")
sys.exit(3 if reader_left() else 4)
"""


def exit_code(reader: str) -> int:
    """Return the program's exit code; nothing may be on stderr."""
    command = ["bash", "-c", f'"$0" -c "$1" | {reader}; exit ${{PIPESTATUS[0]}}', sys.executable]
    done = subprocess.run([*command, PROGRAM], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode


def test_a_reader_that_leaves_is_noticed_and_the_exit_code_stays():
    assert exit_code("head -c 10 >/dev/null") == 3
    assert exit_code("true") == 3


def test_a_reader_that_stays_gets_everything():
    assert exit_code("wc -c >/dev/null") == 4
