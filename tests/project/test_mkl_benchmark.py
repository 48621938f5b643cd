"""benchmarks/mkl.py: what makes MKL faster on an AMD CPU does not change what it computes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmark import benchmark
from tiny import UP_TO_ROUNDING

MULTIPLY = """
import sys, torch
torch.manual_seed(0)
torch.save(torch.randn(64, 96) @ torch.randn(96, 48), sys.argv[1])
"""


def test_products_with_the_library_are_those_without_up_to_rounding(tmp_path: Path):
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    with benchmark("mkl") as module:
        library = module.answering_library(tmp_path)
    found = []
    for preloaded in ("", str(library)):
        file = tmp_path / "product.pt"
        command = [sys.executable, "-c", MULTIPLY, str(file)]
        subprocess.run(command, check=True, env={**os.environ, "LD_PRELOAD": preloaded})
        found.append(torch.load(file))
    torch.testing.assert_close(*found, **UP_TO_ROUNDING)
