"""Train one spec beside peer.py and print the same JSON line. Started by runs.py."""

import json
import os
import sys
import time
from pathlib import Path

from loraudit.base.files import read_json
from loraudit.studies.spec import RunSpec
from loraudit.training import loop, run

first = None
step = loop.optimizer_step


def timed_step(*arguments) -> object:
    """Take the time of the first step's end."""
    global first
    loss = step(*arguments)
    first = first or time.time()
    return loss


loop.optimizer_step = timed_step
file, tokens, model, out = map(Path, sys.argv[1:])
run.train(RunSpec(**read_json(file)), tokens, model, out)
print(json.dumps({"start": first - float(os.environ["LORAUDIT_BENCH_STARTED"])}))
