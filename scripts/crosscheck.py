"""Cross-check one cell of a study: our LoRA beside PEFT's."""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # fetched folders only: no look at the hub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.base.files import write_json
from loraudit.studies.spec import RunSpec
from loraudit.studies.values import validated


def main() -> None:
    """Read the arguments, compare, print the table, and write it if all is within tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="a RunSpec as JSON")
    for name in ("tokens", "model", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    spec = validated(RunSpec, json.loads(arguments.spec), "spec")

    if spec.base_bits is None:  # transformers and PEFT would import it, which takes seconds
        sys.modules.setdefault("hqq", None)
    import pandas as pd

    from loraudit.crosscheck.whole_model import crosscheck, require_agreement

    rows = crosscheck(spec, arguments.tokens, arguments.model)
    print(pd.DataFrame(rows).to_string(index=False), file=sys.stderr)
    require_agreement(rows, arguments.out.stem)
    write_json(arguments.out, rows)


run_program(main)
