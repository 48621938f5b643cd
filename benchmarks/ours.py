"""Train one spec beside peer.py and print the same JSON line. Started by runs.py."""

import json
import os
import sys
import time
from pathlib import Path

from loraudit.base.files import read_json
from loraudit.studies.spec import RunSpec
from loraudit.training import loop, run

times = []
step = loop.optimizer_step


def timed_step(*arguments) -> object:
    """Take the time of each step's end."""
    loss = step(*arguments)
    times.append(time.time())
    return loss


loop.optimizer_step = timed_step
file, tokens, model, out = map(Path, sys.argv[1:])
run.train(RunSpec(**read_json(file)), tokens, model, out)
print(json.dumps({"start": times[0] - float(os.environ["LORAUDIT_BENCH_STARTED"])}))
