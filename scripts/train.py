"""Train one run; started by `accelerate launch`, or launch.py beside this file.

`--spec` takes a run as JSON text, or the path of a spec.json, so any recorded run can be redone:
    accelerate launch --config_file profiles/accelerate/cpu.yaml scripts/train.py \
        --spec results/.../spec.json --tokens resources/tokens/... --model resources/models/... \
        --out x
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # fetched folders only: no look at the hub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import UserError, run_program
from loraudit.base.files import read_json
from loraudit.studies.spec import RunSpec
from loraudit.studies.training_code import training_code
from loraudit.studies.values import validated


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True)
    for name in ("tokens", "model", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder of the run that this one starts from")
    parser.add_argument("--trials", type=Path, help="folder of the runs that try tuned values")
    parser.add_argument("--code", help="digest of the code that was planned to run")
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0, help="0: every step")
    arguments = parser.parse_args()
    import json

    text = arguments.spec
    fields = json.loads(text) if text.startswith("{") else read_json(text)
    spec = validated(RunSpec, fields, "spec")

    if spec.base_bits is None:  # transformers and PEFT would import it, which takes seconds
        sys.modules.setdefault("hqq", None)
    from loraudit.training.run import train

    code = training_code(spec.method, Path(__file__))
    if arguments.code not in (None, code):
        raise UserError("the code was edited since this run was planned; start snakemake again")
    folders = arguments.tokens, arguments.model, arguments.out, arguments.start
    train(spec, *folders, code, arguments.checkpoint_minutes, arguments.trials)


run_program(main)
