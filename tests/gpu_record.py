"""Record what was tried on which GPU: `pytest -m gpu tests/gpu --record FILE.csv` (conftest.py)."""

from pathlib import Path

import pandas as pd
import torch

from loraudit.base.files import write_atomic
from loraudit.base.provenance import git_state


def pytest_addoption(parser):
    parser.addoption("--record", type=Path, help="write a CSV file: a row for each test")


def pytest_terminal_summary(terminalreporter, config):
    """Write the outcomes with the GPU's name; without a GPU there is nothing to record."""
    file = config.getoption("--record")
    if file is None or not torch.cuda.is_available():
        return
    facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__,
             "commit": git_state()["commit"]}  # fmt: skip
    rows = [
        {"test": report.nodeid.partition("::")[2], "outcome": outcome, **facts}
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call" or outcome != "passed"
    ]
    table = pd.DataFrame(rows).sort_values("test")
    write_atomic(file, lambda path: table.to_csv(path, index=False))
