"""How often the host waits for the device: not in a step, and what it sees late is the same."""

import os
import signal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loraudit.adapters.fast_base import fast_base
from loraudit.base.errors import UserError
from loraudit.base.files import folder_fingerprint
from loraudit.studies.record import read_record
from loraudit.tools.calibrate import random_examples
from loraudit.training import loop, run
from loraudit.training import state as state_module
from loraudit.training.method import method_of
from tiny import changed, make_spec, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2"}
"""Operations of torch whose result, or its size, the host needs: `.item()`, `if tensor`, `t[mask]`.
"""
READS = ("tolist", "numpy", "cpu")
"""Methods of tensors that copy to the host and are no operation on a CPU."""


class Waits(TorchDispatchMode):
    """Counts the operations after which the host would wait for a GPU."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.seen: list[str] = []
        for name in READS:
            monkeypatch.setattr(
                torch.Tensor, name, self._counted(name, getattr(torch.Tensor, name))
            )

    def _counted(self, name, method):
        def called(tensor, *args):
            self.seen.append(name)
            return method(tensor, *args)

        return called

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITS or masked:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def prepared(family: str = "roberta", rows: int = 64, **changes):
    """Make a run of a tiny model that is ready to train, and random rows of uneven lengths."""
    spec = make_spec(model=tiny_entry(family), epochs=1, train_rows=rows, **changes)
    module = method_of(spec).apply(fast_base(tiny_model(family), spec), spec)
    state = run.prepare(spec, run.make_accelerator(spec), module, rows, 0)
    examples = random_examples(spec, 60, rows)
    lengths = np.random.default_rng(0).integers(5, 20, rows)
    examples = examples.take(np.arange(rows))
    return state, type(examples)(**{**vars(examples), "lengths": lengths})


@pytest.mark.parametrize("changes", [{}, {"method": "peft"}, {"recompute": "blocks"},
                                     {"micro_batch": 4}, {"method": "full"}])  # fmt: skip
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_step_does_not_make_the_host_wait(family, changes, monkeypatch):
    state, examples = prepared(family, **changes)
    state.model.train()
    with Waits(monkeypatch) as waits:
        for start in range(0, 24, 8):
            loop.optimizer_step(state, examples, np.arange(start, start + 8))
    assert waits.seen == []


def test_an_epoch_makes_the_host_wait_once_in_so_many_steps(monkeypatch):
    state, examples = prepared(rows=8 * 23)
    state.looks = 10
    with Waits(monkeypatch) as waits:
        loop.train_epoch(state, examples)
    assert waits.seen == ["tolist"] * 3  # after steps 10, 20 and 23
    assert state.losses == [] and state.journal.step == 23


def test_an_evaluation_makes_the_host_wait_at_its_end_only(monkeypatch):
    state, examples = prepared()
    made, batch = [], loop.forward
    with Waits(monkeypatch) as waits:

        def forward(*args):
            made.append(len(waits.seen))
            return batch(*args)

        monkeypatch.setattr(loop, "forward", forward)
        loop.outputs(state, examples, "evaluate")
    assert made == [0, 0] and set(waits.seen) == {"cpu", "numpy"}


def trained(tiny, out, looks: int, monkeypatch, **changes) -> dict:
    """Train where the host looks that seldom; returns all that must not depend on it."""
    monkeypatch.setattr(state_module, "LOOKS", {"cpu": looks})
    spec = changed(make_spec(), **changes)
    run.train(spec, tiny / "tokens", tiny / "model", out)
    names = ("history.csv", "predictions.parquet")
    return {name: (out / name).read_bytes() for name in names} | folder_fingerprint(out / "adapter")


def test_how_seldom_the_host_looks_changes_no_bit(tiny, tmp_path, monkeypatch):
    """Neither in one go, nor where a signal stops the run between two looks."""
    often = trained(tiny, tmp_path / "often", 1, monkeypatch)
    assert trained(tiny, tmp_path / "seldom", 7, monkeypatch) == often

    steps = iter(range(100))

    def stopped(*args, do=loop.optimizer_step):
        if next(steps) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return do(*args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop, "optimizer_step", stopped)
        trained(tiny, tmp_path / "cut", 7, patch)
    assert trained(tiny, tmp_path / "cut", 7, monkeypatch) == often
    (resumed,) = read_record(tmp_path / "cut/record.json").environment["resumed"]
    assert resumed["step"] == 11


@pytest.mark.parametrize("looks", [1, 7])
def test_a_run_that_diverges_is_told_at_which_step(looks, tiny, tmp_path, monkeypatch):
    steps = iter(range(1, 100))

    def lost(*args, do=loop.optimizer_step):
        return do(*args) * (float("nan") if next(steps) >= 9 else 1)

    monkeypatch.setattr(loop, "optimizer_step", lost)
    with pytest.raises(UserError, match=r"the loss is nan at step 9 \(epoch 1\); no result"):
        trained(tiny, tmp_path, looks, monkeypatch)
    assert not (tmp_path / "record.json").exists()


def test_the_mask_of_a_padded_batch_is_torchs(batch):
    """Made without a look, it hides the same tokens."""
    spec = make_spec(model=tiny_entry("roberta"))
    outputs = []
    for compute in ("plain", "fast"):
        asked = changed(spec, compute=compute)
        outputs.append(fast_base(tiny_model("roberta").double(), asked).eval()(**batch).logits)
    torch.testing.assert_close(*outputs, atol=1e-10, rtol=1e-10)
