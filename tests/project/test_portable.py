"""`make test-portable`: its settings take effect, so that it does compute as another CPU would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.numerics, pytest.mark.slow]

MAKEFILE = Path("Makefile").read_text().replace("\\\n", " ")
SETTINGS = dict(re.findall(r"(\w+)=(\w+)", re.findall(r"^PORTABLE := (.*)$", MAKEFILE, re.M)[0]))
PROGRAM = """
import hashlib, numpy, threadpoolctl, torch
draw = numpy.random.default_rng(0)
one, two = draw.standard_normal((64, 300)), draw.standard_normal((300, 200))
a, b = (torch.tensor(value, dtype=torch.float32) for value in (one, two))
values = {"torch": a.softmax(1), "MKL": a @ b, "OpenBLAS": one @ two}
for name, value in values.items():
    print(name, hashlib.sha256(numpy.asarray(value).tobytes()).hexdigest())
libraries = threadpoolctl.threadpool_info()
print("OpenBLAS takes the CPU for", *{found.get("architecture") for found in libraries} - {None})
print("torch uses", torch.backends.cpu.get_cpu_capability())
"""


def printed(**settings: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=clean | settings, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(
    torch.backends.mkl.is_available() is False or os.uname().machine != "x86_64",
    reason="the settings are those of x86 builds with MKL",
)
def test_each_library_rounds_otherwise_under_the_settings():
    """On the CPUs that have AVX2, as all x86 ones of the last ten years; and again the same.

    OpenBLAS takes a CPU that is newer than itself for an old one, without any setting."""
    usual, portable = printed(), printed(**SETTINGS)
    assert portable[-1] == "torch uses DEFAULT"
    if usual[-1] != portable[-1] and usual[-2] != portable[-2]:
        assert not set(usual) & set(portable)
    assert portable == printed(**SETTINGS)


def test_this_process_follows_its_settings():
    if os.environ.get("ATEN_CPU_CAPABILITY") == "default":
        assert "CPU capability usage: DEFAULT" in torch.__config__.show()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        assert torch.get_num_threads() == int(threads)
