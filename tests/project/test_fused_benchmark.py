"""benchmarks/fused.py: its cases compute the same, so that their times may be compared."""

import pytest
import torch

from benchmark import benchmark
from tiny import UP_TO_ROUNDING


@pytest.fixture(scope="module")
def fused():
    """Give benchmarks/fused.py as a module."""
    with benchmark("fused") as module:
        yield module


def test_all_cases_with_adapters_compute_the_same(fused):
    outputs = {name: call() for name, call in fused.calls(16, 2, 3).items()}
    frozen = {name: outputs.pop(name) for name in fused.FROZEN.values()}
    torch.testing.assert_close(*frozen.values(), **UP_TO_ROUNDING)
    assert len(outputs) == 5
    for name, found in outputs.items():
        torch.testing.assert_close(found, outputs[fused.BESIDE], atol=1e-4, rtol=1e-4, msg=name)
        assert not torch.allclose(found, frozen[fused.FROZEN["one"]], atol=0.1)


def test_a_table_has_medians_and_quartiles_beside_three_layers(fused):
    table = fused.measured(16, 2, 3, rounds=4).set_index("what")
    assert table.loc[fused.BESIDE, ["median", "lower", "upper"]].tolist() == [1.0] * 3
    assert (table.lower <= table["median"]).all() and (table["median"] <= table.upper).all()
    assert table.share_median.isna().tolist() == [
        name in fused.FROZEN.values() for name in table.index
    ]
    assert (table.ms > 0).all()
