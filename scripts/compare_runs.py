"""Compare two runs on the same validation rows: McNemar, paired bootstrap, and what differs.

python scripts/compare_runs.py results/S/runs/.../s0 results/S/runs/.../s0 [--resamples 2000]
"""

import argparse
from pathlib import Path

from loraudit.collect import read_run, spec_difference
from loraudit.errors import UserError, run_program
from loraudit.glue_metric import MEASURES
from loraudit.statistics import agreement, mcnemar, paired_bootstrap, same_rows
from loraudit.tables import interval, p_value, points


def main() -> None:
    """Read the arguments, compare, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("left", type=Path, help="folder of a run")
    parser.add_argument("right", type=Path, help="folder of another")
    parser.add_argument("--resamples", type=int, default=2000)
    arguments = parser.parse_args()
    (left, left_rows), (right, right_rows) = (
        read_run(folder) for folder in (arguments.left, arguments.right)
    )
    if left.spec.task.name != right.spec.task.name:
        raise UserError(
            f"runs of different tasks: {left.spec.task.name!r} and {right.spec.task.name!r}"
        )
    task = left.spec.task
    one, two = same_rows(left_rows, right_rows)
    equal = agreement(one, two)
    if not one.label.equals(two.label):
        raise UserError(f"the runs have other labels on the same rows of {task.name!r}")
    found = paired_bootstrap(
        one.label.to_numpy(),
        one.prediction.to_numpy(),
        two.prediction.to_numpy(),
        MEASURES[task.headline],
        arguments.resamples,
    )
    print(spec_difference(left.spec, right.spec).to_string(index=False))
    print(
        f"\n{equal['rows']} rows of {task.name}, last epochs; left minus right, {task.headline}: "
        f"{points(found['difference'])} points, 95 % paired bootstrap "
        f"{interval(found['low'], found['high'])}"
    )
    if not task.regression:
        test = mcnemar(one.prediction == one.label, two.prediction == two.label)
        print(
            f"right on one side only: {test['only_left']} left, {test['only_right']} right; "
            f"exact McNemar p = {p_value(test['p'])}"
        )
    print(
        f"equal predictions: {100 * equal['equal_share']:.1f} %, "
        f"largest logit difference {equal['largest_logit_difference']:.3g}"
    )


run_program(main)
