"""Submit a job to PBS Professional or Grid Engine, or print how it is; for cluster-generic."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import UserError, run_program
from loraudit.base.queues import Request, status, submit


def main() -> None:
    """Read the arguments, and submit or ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["submit", "status"])
    parser.add_argument("kind", choices=["pbs", "sge"])
    parser.add_argument("--name")
    for name in ("threads", "mem-mb", "minutes", "gpus", "nodes"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--extra", default="", help="further options of qsub")
    parser.add_argument("job", help="the job's script, or its id")
    asked = parser.parse_args()
    folder = Path("logs", asked.kind)
    if asked.what == "status":
        print(status(asked.kind, asked.job, folder))
        return
    if asked.nodes > 1:
        raise UserError(f"launch: a run on {asked.nodes} nodes needs SLURM; take one node")
    request = Request(
        asked.name, asked.threads, asked.mem_mb, asked.minutes, asked.gpus, asked.extra
    )
    print(submit(asked.kind, request, Path(asked.job), folder))


run_program(main)
