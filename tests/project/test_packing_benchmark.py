"""benchmarks/packing.py, on the smallest case."""

import pytest

from benchmark import benchmark
from loraudit.studies.packs import require_pack
from tiny import tiny_model

pytestmark = pytest.mark.slow


def test_it_times_the_same_runs_alone_and_together(monkeypatch):
    with benchmark("packing") as packing:
        specs = packing.specs_of("minilm", 2, 4, 16, "fp32")
        require_pack(specs)
        monkeypatch.setattr(packing, "random_model", lambda name: tiny_model("bert"))
        seconds = packing.ratios(packing.steps("minilm", specs), rounds=2, warm_up=1)
    assert list(sorted(seconds)) == ["alone", "packed"]
    assert len(seconds) == 2 and (seconds > 0).all().all()
