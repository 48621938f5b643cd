"""Train a pack of runs, which share one model and each batch; started as train.py is.

`--spec` and `--out` take a value for each run, in one order; the other arguments are of all:
    accelerate launch --config_file profiles/accelerate/gpu.yaml scripts/train_packed.py \
        --spec results/.../s0/spec.json results/.../s1/spec.json --out x/s0 x/s1 \
        --tokens resources/tokens/... --model resources/models/...
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # fetched folders only: no look at the hub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import UserError, run_program
from loraudit.base.files import read_json
from loraudit.studies.packs import packed_code
from loraudit.studies.spec import RunSpec
from loraudit.studies.values import validated


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, nargs="+")
    parser.add_argument("--out", required=True, nargs="+", type=Path)
    for name in ("tokens", "model"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--trials", type=Path, help="folder of the runs that try tuned values")
    parser.add_argument("--code", help="digest of the code that was planned to run")
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0, help="0: every step")
    arguments = parser.parse_args()
    import json

    if len(arguments.spec) != len(arguments.out):
        raise UserError(
            f"out: {len(arguments.out)} folders for {len(arguments.spec)} runs; give one for each"
        )
    texts = [json.loads(t) if t.startswith("{") else read_json(t) for t in arguments.spec]
    specs = [validated(RunSpec, fields, "spec") for fields in texts]

    sys.modules.setdefault("hqq", None)  # no pack needs it, and its import takes seconds
    from loraudit.training.packing import train_pack

    code = packed_code(Path(__file__))
    if arguments.code not in (None, code):
        raise UserError("the code was edited since these runs were planned; start snakemake again")
    folders = arguments.tokens, arguments.model, arguments.out
    train_pack(specs, *folders, code, arguments.checkpoint_minutes, arguments.trials)


run_program(main)
