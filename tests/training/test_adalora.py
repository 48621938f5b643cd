"""AdaLoRA by PEFT: its start, its penalty, and what PEFT makes of the export."""

import copy
from types import SimpleNamespace

import peft
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loraudit.studies.method_settings import AdaLoRASettings
from loraudit.training.methods import adalora
from tiny import changed, make_spec, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

SPEC = make_spec(
    method="adalora", adalora=AdaLoRASettings(deltaT=1), rank=2, alpha=6, init=None, init_std=None
)


def e_parameters(model) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if "lora_E" in name}


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_peft_loads_the_export_with_equal_outputs(model_type, tmp_path, batch):
    """One layer keeps all of its ranks, one none, the others some."""
    targets = ("up", "down") if model_type == "gpt2" else ("q", "v")
    spec = changed(SPEC, model=tiny_entry(model_type), targets=targets)
    model = adalora.AdaLoRA().apply(tiny_model(model_type), spec).eval()
    masks = ([1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1])
    with torch.no_grad():
        for parameter, mask in zip(e_parameters(model).values(), masks, strict=True):
            parameter.copy_(torch.randn(3, 1) * torch.tensor(mask)[:, None] * 100)
        expected = model(**batch).logits
        adalora.AdaLoRA().export(model, spec, tmp_path)
        loaded = peft.PeftModel.from_pretrained(tiny_model(model_type), tmp_path).eval()
        plain = tiny_model(model_type).eval()(**batch).logits
        assert (expected - plain).abs().max() > 1e-2
        torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(**batch).logits, expected)  # the model is as it was
    assert [len(p) for p in e_parameters(loaded).values()] == [3, 0, 1, 2]


class Devices(TorchDispatchMode):
    """Note the devices of the tensors that operations give while the mode is on."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor):
            self.seen.add(result.device.type)
        return result


def controller_of(model, steps: int) -> adalora.AdaLoRAController:
    """Make the controller of a run of so many steps; the last fifth has fixed masks."""
    settings = AdaLoRASettings(deltaT=1, tinit=0, tfinal=steps // 5)
    spec = changed(SPEC, epochs=1, global_batch=1, adalora=settings)
    state = SimpleNamespace(spec=spec, bare=model)
    return adalora.AdaLoRAController(state, {"train": range(steps)})


def test_a_step_copies_nothing_to_the_device():
    """The meta device stands for a GPU: a copy would begin with a tensor on the CPU."""
    model = adalora.AdaLoRA().apply(tiny_model(), SPEC).to("meta")
    controller = controller_of(model, 10)
    lambdas = e_parameters(controller.tuner.model)
    controller.config.rank_pattern = {name: [True, False, False] for name in lambdas}
    controller.allocate(9)  # the masks are copied at the first step after the last allocation
    with Devices() as devices:
        controller.penalty()
        controller.allocate(10)
    assert devices.seen == {"meta"}


def test_the_fixed_masks_are_pefts():
    ours = adalora.AdaLoRA().apply(tiny_model(), SPEC)
    for parameter in e_parameters(ours).values():
        torch.nn.init.normal_(parameter)
    controller = controller_of(ours, 10)
    lambdas = e_parameters(controller.tuner.model)
    masks = ([1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1])
    controller.config.rank_pattern = {
        name: [bool(kept) for kept in mask] for name, mask in zip(lambdas, masks, strict=True)
    }
    pefts = copy.deepcopy(controller.tuner)
    controller.allocate(9)
    pefts.update_and_allocate(9)
    for name, value in e_parameters(pefts.model).items():
        assert torch.equal(value, lambdas[name])
    assert [int(p.count_nonzero()) for p in lambdas.values()] == [3, 0, 1, 2]


def test_the_start_is_the_seeds_and_changes_no_output(batch):
    one, same, other = (
        adalora.AdaLoRA().apply(tiny_model(), changed(SPEC, seed=seed)).eval() for seed in (0, 0, 1)
    )
    for name, value in one.named_parameters():
        assert torch.equal(value, same.get_parameter(name))
        if "lora_A" in name or "lora_B" in name:
            assert not torch.equal(value, other.get_parameter(name))
    with torch.no_grad():  # E is zero: zero is added to what the frozen layers give
        assert torch.equal(one(**batch).logits, tiny_model().eval()(**batch).logits)
