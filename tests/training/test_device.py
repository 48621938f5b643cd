"""How a run computes on its device; GPUs are played by patched answers of torch's."""

import os
import runpy

import pytest
import torch
from torch.backends import cuda

from loraudit.base.errors import UserError
from loraudit.tools import calibrate
from loraudit.training import device, loop
from loraudit.training.device import WORKSPACE, check_precision, exempt, same_bits
from loraudit.training.run import train
from tiny import changed, make_spec

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def mode() -> dict:
    """All switches on which a run's bits depend."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warns only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
        "products": torch.get_float32_matmul_precision(),
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
    }


STRICT = {
    "deterministic": True,
    "warns only": False,
    "fills": False,
    "products": "highest",
    "flash": True,
    "efficient": True,
    "math": True,
    "cudnn": False,
}


def test_the_mode_is_strict_inside_and_as_before_outside():
    before = mode()
    with same_bits("fp32", CPU):
        assert mode() == STRICT
    with pytest.raises(KeyError), same_bits("tf32", CPU):
        assert mode() == {**STRICT, "products": "high"}
        raise KeyError
    assert mode() == before != STRICT


@pytest.fixture
def modes(monkeypatch):
    """Return the modes of the optimizer steps that the test does."""
    found, step = [], loop.optimizer_step

    def optimizer_step(*arguments):
        found.append(mode())
        return step(*arguments)

    monkeypatch.setattr(loop, "optimizer_step", optimizer_step)
    return found


@pytest.mark.slow
def test_train_and_calibrate_compute_in_the_same_mode(modes, tiny, tmp_path, monkeypatch):
    before = mode()
    for key in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(key, "")  # calibrate sets them
        monkeypatch.delenv(key)
    spec = make_spec(epochs=1, train_rows=16)
    train(spec, tiny / "tokens", tiny / "model", tmp_path)
    launch = {"mixed_precision": "no", "use_cpu": True, "num_processes": 1}
    folders = {name: tiny / name for name in ("task", "tokens", "model")}
    calibrate.measure(spec.model_dump(mode="json"), folders, launch, 1)
    assert len(modes) > 2 and all(found == STRICT for found in modes)
    assert mode() == before


def test_cublas_gets_a_fixed_workspace_before_anything_can_start_cuda(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    runpy.run_path(device.__file__)  # importing the code that trains is enough
    assert os.environ[WORKSPACE] == ":4096:8"
    monkeypatch.setenv(WORKSPACE, ":16:8")  # what the user has chosen stays
    runpy.run_path(device.__file__)
    assert os.environ[WORKSPACE] == ":16:8"


@pytest.fixture
def settle(monkeypatch):
    """Let the first run on CUDA find a workspace in the environment; products are the test's."""
    device.settle_workspace.cache_clear()

    def given(workspace: str, product=lambda: None) -> None:
        monkeypatch.setenv(WORKSPACE, workspace)
        monkeypatch.setattr(device, "_product", product)

    yield given
    device.settle_workspace.cache_clear()


def test_another_workspace_is_refused_on_cuda_only(settle):
    settle(":0:0")
    with same_bits("fp32", CPU):
        pass
    wanted = r"= ':0:0': .* \(legal: :4096:8 or :16:8"
    with pytest.raises(UserError, match=wanted), same_bits("fp32", CUDA):
        pass


def test_the_workspace_is_shown_to_torch_and_then_taken_away(settle):
    seen = []
    settle(":4096:8", lambda: seen.append(os.environ.get(WORKSPACE)))
    for _ in range(2):  # a process may train more than once
        with same_bits("fp32", CUDA):
            assert WORKSPACE not in os.environ
    assert seen == [":4096:8", None]


def test_a_smaller_workspace_than_torchs_own_stays(settle):
    settle(":16:8")
    with same_bits("fp32", CUDA):
        assert os.environ[WORKSPACE] == ":16:8"


def test_a_run_on_the_cpu_multiplies_nothing_on_a_gpu(settle, monkeypatch):
    settle(":4096:8", lambda: pytest.fail("a product on the GPU"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with same_bits("fp32", CPU):
        pass


def test_a_torch_that_asks_for_the_workspace_at_each_product_keeps_it(settle):
    def product():
        if WORKSPACE not in os.environ:
            raise RuntimeError("cuBLAS is not deterministic")

    settle(":4096:8", product)
    with same_bits("fp32", CUDA):
        product()


def as_on_cuda(name: str, function):
    """Refuse an operation in the strict mode, as CUDA does where it has no deterministic kernel."""

    def called(*arguments, **options):
        strict = not torch.is_deterministic_algorithms_warn_only_enabled()
        if torch.are_deterministic_algorithms_enabled() and strict:
            raise RuntimeError(f"{name} does not have a deterministic implementation")
        return function(*arguments, **options)

    return called


def test_an_exception_is_one_of_those_named_and_ends_with_its_block(monkeypatch):
    monkeypatch.setattr(torch, "kthvalue", as_on_cuda("kthvalue CUDA", torch.kthvalue))
    values = torch.tensor([3.0, 1.0, 2.0])
    with same_bits("fp32", CPU):
        with exempt("kthvalue"):
            assert torch.kthvalue(values, 2)[0] == 2
        with pytest.raises(RuntimeError):
            torch.kthvalue(values, 2)
        with pytest.raises(AssertionError), exempt("cumsum"):
            pass


@pytest.mark.slow
def test_adalora_runs_where_kthvalue_has_no_deterministic_kernel(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "kthvalue", as_on_cuda("kthvalue CUDA", torch.kthvalue))
    spec = changed(make_spec(epochs=1, train_rows=64), method="adalora", init=None)
    train(spec, tiny / "tokens", tiny / "model", tmp_path)
    assert (tmp_path / "record.json").exists()


def gpu(monkeypatch, name: str, major: int, minor: int) -> None:
    """Let torch describe a GPU."""
    found = type("Properties", (), {"major": major, "minor": minor})
    for function, answer in (
        ("is_available", True),
        ("current_device", 0),
        ("get_device_properties", found),
        ("get_device_capability", (major, minor)),
        ("get_device_name", name),
    ):
        monkeypatch.setattr(torch.cuda, function, lambda *_, answer=answer: answer)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_precision_that_the_gpu_lacks_is_one_sentence(precision, monkeypatch):
    gpu(monkeypatch, "Tesla V100-SXM2-16GB", 7, 0)
    check_precision("fp32", CUDA)
    with pytest.raises(UserError) as refused:
        check_precision(precision, CUDA)
    assert str(refused.value) == (
        f"precision: '{precision}' needs an NVIDIA GPU of compute capability 8.0 or more (Ampere, "
        "2020), and this run computes on Tesla V100-SXM2-16GB (compute capability 7.0) "
        "(legal there: fp32)"
    )


def test_every_precision_goes_on_a_newer_gpu(monkeypatch):
    gpu(monkeypatch, "NVIDIA H100 80GB HBM3", 9, 0)
    for precision in ("fp32", "tf32", "bf16"):
        check_precision(precision, CUDA)


def test_a_cpu_has_bf16_but_no_tf32(tiny, tmp_path):
    check_precision("bf16", CPU)
    spec = make_spec(precision="tf32")
    with pytest.raises(UserError, match=r"'tf32' needs .* on the CPU \(legal there: fp32, bf16\)"):
        train(spec, tiny / "tokens", tiny / "model", tmp_path)
