"""AdaLoRA (Zhang et al., ICLR 2023) as PEFT has it.

The update is P diag(lambda) Q, in PEFT's names lora_B, lora_E and lora_A, times
alpha / (initial rank + 1e-5). PEFT masks: shapes stay, and a rank out of use has its lambda set to
zero. Between two allocations masked ranks are trained again, so a model in use before the last
allocation may hold more ranks than its budget; what is exported is every rank whose lambda is not
zero, that is, the model that was scored.

Two things that PEFT's documentation asks of a training loop are done by the controller:
`update_and_allocate` after each optimizer step while gradients are there, and the orthogonal
penalty, which PEFT adds only to a loss that the model itself computes (peft 0.21,
tuners/adalora/model.py, forward).
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
from torch import Tensor, nn

from loraudit.adapters.base_layers import freeze, target_modules
from loraudit.adapters.peft_folder import PREFIX, write_folder
from loraudit.adapters.peft_twin import base_name, refreeze_head
from loraudit.base.errors import UserError
from loraudit.data.batches import Examples
from loraudit.studies.method_settings import AdaLoRASettings
from loraudit.studies.spec import RunSpec, derive_seed
from loraudit.training.method import Method
from loraudit.training.rank_moves import RankController

if TYPE_CHECKING:
    from loraudit.training.state import State

NAME = "default"
"""PEFT's name of the adapter."""


class AdaLoRA(Method):
    """PEFT's AdaLoraModel; its controller calls PEFT's rank allocator."""

    def apply(self, model: nn.Module, spec: RunSpec) -> nn.Module:
        """Wrap the model with PEFT's AdaLoRA; P and Q are drawn per layer, by a derived seed.

        The schedule needs the number of steps, so the controller sets it.

        Raises:
            UserError: a target that this model lacks.
        """
        adapter, settings = spec.lora, spec.settings
        assert isinstance(settings, AdaLoRASettings)  # the spec sees to it
        freeze(model, spec.model.head, train_head=False)
        names = target_modules(model, spec.model, adapter.targets)
        config = peft.AdaLoraConfig(
            task_type=peft.TaskType.SEQ_CLS,
            target_r=adapter.rank,
            init_r=settings.start(adapter.rank),
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.lora_dropout,
            target_modules=list(names),
            modules_to_save=list(spec.model.head),
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
        """Save every rank whose lambda is not zero, and the head, as PEFT's own loading expects."""
        config = model.peft_config[NAME]
        kept = config.rank_pattern
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
        """Return what allocates the ranks of a run.

        Raises:
            UserError: a schedule that leaves no step to allocate in.
        """
        return AdaLoRAController(state, examples)


class AdaLoRAController(RankController):
    """Calls PEFT's allocator; `RankController` says when."""

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

        The paper squares the norms; this is PEFT's.
        """
        weight = self.config.orth_reg_weight
        if not weight:
            return None
        norms = []
        for parameter, rows in self.penalised:
            gram = parameter @ parameter.T if rows else parameter.T @ parameter
            norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram)).to(gram)))
        return weight * torch.stack(norms).mean()

    def allocate(self, step: int) -> None:
        """Update the scores; mask by them where the schedule says so."""
        before = self.config.rank_pattern
        self.tuner.update_and_allocate(step)
        self.counts["allocations"] += self.config.rank_pattern is not before

    def state_dict(self) -> dict[str, Any]:
        """Return the masks and the allocator's moving averages too."""
        averages = {name: dict(getattr(self.allocator, name)) for name in AVERAGES}
        return {**super().state_dict(), "pattern": self.config.rank_pattern, "averages": averages}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take up masks, averages and counts."""
        super().load_state_dict(content)
        self.config.rank_pattern = content["pattern"]
        device = self.state.accelerator.device
        for name, tensors in content["averages"].items():
            setattr(self.allocator, name, {key: t.to(device) for key, t in tensors.items()})

    def restore(self, ranks: dict[str, int]) -> None:
        """Do nothing: PEFT masks, so shapes stay as they are."""


AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""The allocator's tensors by parameter name: sensitivity, its average, its uncertainty."""


def _steps(asked: float, steps: int) -> int:
    """Return a number of steps, given as such or as a share of all."""
    return asked if isinstance(asked, int) else round(asked * steps)
