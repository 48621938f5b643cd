"""AdaLoRA (Zhang et al., ICLR 2023) as PEFT has it.

The update is P diag(lambda) Q, in PEFT's names lora_B, lora_E and lora_A, times
alpha / (initial rank + 1e-5). PEFT keeps all shapes and masks ranks out of use by setting their
lambda to zero. Between two allocations masked ranks are trained again, so before the last one a
model may use more ranks than its budget. The export has every rank whose lambda is not zero, which
is the model that was scored.

The controller does two things that PEFT's documentation asks of a training loop: it calls
`update_and_allocate` after each optimizer step, before gradients are cleared, and it adds the
orthogonal penalty, which PEFT adds only to a loss that the model itself computes (peft 0.21,
tuners/adalora/model.py, forward). After the last allocation PEFT would copy every layer's mask to
the device at each step, and wait for the copy; the controller then sets the same zeros by masks
that it has copied once.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
from torch import Tensor, nn

from loraudit.adapters.base_layers import freeze, target_modules
from loraudit.adapters.peft_folder import PREFIX, write_folder
from loraudit.adapters.peft_twin import base_name, refreeze_head, task_type
from loraudit.base.errors import UserError
from loraudit.data.batches import Examples
from loraudit.studies.method_settings import AdaLoRASettings
from loraudit.studies.spec import RunSpec, derive_seed
from loraudit.training.device import exempt
from loraudit.training.method import Method
from loraudit.training.rank_moves import RankController

if TYPE_CHECKING:
    from loraudit.training.state import State

NAME = "default"
"""PEFT's name of the adapter."""


class AdaLoRA(Method):
    """PEFT's AdaLoraModel; its controller calls PEFT's rank allocator."""

    def apply(self, model: nn.Module, spec: RunSpec) -> nn.Module:
        """Wrap the model with PEFT's AdaLoRA; each layer's P and Q are drawn by a derived seed.

        The schedule needs the number of steps, so the controller sets it later.

        Raises:
            UserError: this model lacks a target.
        """
        adapter, settings = spec.lora, spec.settings
        assert isinstance(settings, AdaLoRASettings)  # the spec sees to it
        freeze(model, spec.model.head, train_head=False)
        names = target_modules(model, spec.model, adapter.targets)
        config = peft.AdaLoraConfig(
            task_type=task_type(spec),
            target_r=adapter.rank,
            init_r=settings.start(adapter.rank),
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.lora_dropout,
            target_modules=list(names),
            modules_to_save=list(spec.model.head) or None,
            **settings.model_dump(include={"deltaT", "beta1", "beta2", "orth_reg_weight"}),
            total_step=1,
        )
        wrapped = peft.get_peft_model(model, config)
        for name in names:
            torch.manual_seed(derive_seed(spec.seed, "lora_A", name))
            wrapped.get_submodule(PREFIX + name).reset_lora_parameters(NAME)
        refreeze_head(wrapped, spec)
        return wrapped

    def export(self, model: nn.Module, spec: RunSpec, folder: Path) -> None:
        """Save every rank whose lambda is not zero, and the head, in the form that PEFT loads."""
        config = model.peft_config[NAME]
        kept = config.rank_pattern  # of the last allocation; the config has it again below
        config.rank_pattern = {
            name.removesuffix(f".{NAME}"): (parameter != 0).view(-1).tolist()
            for name, parameter in model.base_model.model.named_parameters()
            if name.endswith(f".lora_E.{NAME}")
        }
        state = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in peft.get_peft_model_state_dict(model).items()
        }
        written = copy.copy(config)
        config.rank_pattern = kept
        written.inference_mode, written.base_model_name_or_path = True, base_name(spec)
        write_folder(state, written, folder)

    def controller(self, state: "State", examples: dict[str, Examples]) -> "AdaLoRAController":
        """Return the controller that allocates the ranks of a run.

        Raises:
            UserError: the schedule leaves no step to allocate in.
        """
        return AdaLoRAController(state, examples)


class AdaLoRAController(RankController):
    """Calls PEFT's allocator after each step."""

    with_gradients = True

    def __init__(self, state: "State", examples: dict[str, Examples]):
        super().__init__(state, len(examples["train"]))
        settings = state.spec.settings
        assert isinstance(settings, AdaLoRASettings)  # the spec sees to it
        self.tuner = state.bare.base_model
        self.config, self.allocator = self.tuner.peft_config[NAME], self.tuner.rankallocator
        tinit, tfinal = (_steps(part, self.steps) for part in (settings.tinit, settings.tfinal))
        if tinit >= self.steps - tfinal:
            raise UserError(
                f"adalora: tinit {settings.tinit:g} and tfinal {settings.tfinal:g} are {tinit} and "
                f"{tfinal} of the run's {self.steps} steps: none is left to allocate in"
            )
        self.config.total_step, self.config.tinit, self.config.tfinal = self.steps, tinit, tfinal
        self.penalised = [
            (parameter, ".lora_A." in name)
            for name, parameter in self.tuner.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        ]
        self.masks: list[tuple[nn.Parameter, Tensor]] = []
        self.counts |= {"allocations": 0, "tinit": tinit, "tfinal": tfinal}

    def ranks(self) -> dict[str, int]:
        """Return how many ranks each layer was left with at the last allocation."""
        pattern = self.config.rank_pattern
        if pattern is not None:
            return {name.partition(".lora_E")[0]: sum(mask) for name, mask in pattern.items()}
        modules = self.tuner.model.named_modules()
        return {name: layer.r[NAME] for name, layer in modules if hasattr(layer, "lora_E")}

    def penalty(self) -> Tensor | None:
        """Return weight * mean over P and Q of ||P^T P - I||_F and ||Q Q^T - I||_F.

        The paper squares the norms; PEFT does not.
        """
        weight = self.config.orth_reg_weight
        if not weight:
            return None
        norms = []
        for parameter, rows in self.penalised:
            gram = parameter @ parameter.T if rows else parameter.T @ parameter
            one = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            norms.append(torch.linalg.matrix_norm(gram - one))
        return weight * torch.stack(norms).mean()

    def allocate(self, step: int) -> None:
        """Update the scores, and mask ranks by them at the steps that the schedule says."""
        before = self.config.rank_pattern
        if step > self.steps - self.config.tfinal:
            self._mask(before or {})  # no pattern: nothing was ever allocated
            return
        with exempt("kthvalue"):
            self.tuner.update_and_allocate(step)
        self.counts["allocations"] += self.config.rank_pattern is not before

    @torch.no_grad()
    def _mask(self, pattern: dict[str, list[bool]]) -> None:
        """Zero lambda where the last allocation's pattern is false."""
        if not self.masks:
            named = dict(self.tuner.model.named_parameters())
            for name, kept in pattern.items():
                out = ~torch.tensor(kept, device=named[name].device)
                self.masks.append((named[name], out[:, None]))  # (rank, 1), as lambda is
        for parameter, out in self.masks:
            parameter.masked_fill_(out, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return what the base class does, and the masks and the allocator's moving averages."""
        averages = {name: dict(getattr(self.allocator, name)) for name in AVERAGES}
        return {**super().state_dict(), "pattern": self.config.rank_pattern, "averages": averages}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        super().load_state_dict(content)
        self.config.rank_pattern = content["pattern"]
        device = self.state.accelerator.device
        for name, tensors in content["averages"].items():
            setattr(self.allocator, name, {key: t.to(device) for key, t in tensors.items()})

    def restore(self, ranks: dict[str, int]) -> None:
        """Do nothing, because PEFT masks ranks and all shapes stay."""


AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""The allocator's attributes that hold tensors by parameter name: the sensitivity, its moving
average, and that of its uncertainty."""


def _steps(asked: float, steps: int) -> int:
    """Return a number of steps that is given as such or as a share of all."""
    return asked if isinstance(asked, int) else round(asked * steps)
