"""ALoRA: ranks move to the layers where an ablation says that they matter.

Liu et al., NAACL 2024 (arXiv 2403.16187), Algorithm 1. Training starts as LoRA of rank r in every
layer. After K1 epochs, and then every K2 epochs, at most N_A times:

    1. Score every rank on one fixed batch:   IS(r) = S(M) - S(M\\r) + S(M_r)             (Eq. 6)
       S is minus the mean loss (cross-entropy, or squared error where a number is predicted), M\\r
       is the model without rank r, and M_r the model with rank r alone.
    2. Take away the n_A ranks of lowest score, whatever their layer.
    3. Give n_A new ranks to the layers that lost none, as evenly as possible, the remainder to
       those of higher mean score.

The budget, which is the sum of ranks, therefore stays. The paper leaves open what n_A counts and
what M_r switches off (fields of the spec's `alora`), what happens when every layer has lost a rank
(here all of them then share the new ones by the same rule, so that the budget stays), and whether
scoring uses dropout (here it does not). Every rank keeps the scaling alpha / r of the start, so
moving ranks does not rescale those that stay. What happens to the optimizer's state is in
resize_ranks.py.

Scoring costs two forward passes for each rank, from the rank's block upwards (block_outputs.py),
and a whole one each for S(M) and for the model without ranks.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from loraudit.adapters.base_layers import blocks_of
from loraudit.adapters.inject import lora_layers
from loraudit.adapters.lora import LoRALinear
from loraudit.base.errors import UserError
from loraudit.base.progress import progress
from loraudit.data.batches import Examples, collate, labels_tensor, sorted_batches
from loraudit.studies.method_settings import ALoRASettings
from loraudit.studies.spec import derive_seed
from loraudit.training.block_outputs import KeptOutputs
from loraudit.training.loop import to_device
from loraudit.training.losses import row_losses
from loraudit.training.methods.lora import LoRA
from loraudit.training.rank_moves import RankController
from loraudit.training.resize_ranks import gated, grow, prune, resize

if TYPE_CHECKING:
    from loraudit.training.state import State

CUTS = 4
"""The scoring batch is run in so many parts; rows of like length together need less padding."""

Layers = Mapping[str, LoRALinear]
Scores = dict[str, Tensor]
"""{layer's name: importance of its ranks (rank,), float64}."""


class ALoRA(LoRA):
    """Starts and is saved as LoRA; its controller moves ranks while it trains."""

    def controller(self, state: "State", examples: dict[str, Examples]) -> "ALoRAController":
        """Return the controller that moves the ranks of a run.

        Raises:
            UserError: settings do not fit the data or the model.
        """
        return ALoRAController(state, examples)


class ALoRAController(RankController):
    """Moves ranks by ALoRA's rule; `RankController` says when it is called."""

    def __init__(self, state: "State", examples: dict[str, Examples]):
        super().__init__(state, len(examples["train"]))
        assert isinstance(state.spec.settings, ALoRASettings)  # the spec sees to it
        self.settings = state.spec.settings
        self.layers = lora_layers(state.bare)
        self.at = round_steps(self.settings, self.per_epoch, self.steps)
        self.pruned = self._pruned()
        split = examples[self.settings.split]
        rows = scoring_rows(self.settings, len(split), state.spec.seed)
        cuts = sorted_batches(split.lengths[rows], -(-len(rows) // CUTS))
        self.batches = [self._batch(split, rows[cut]) for cut in cuts]
        self.weight = split.weight(rows)
        compiled = state.spec.compute == "compiled"  # a compiled model runs whole passes only
        self.prefix = KeptOutputs({} if compiled else blocks_of(state.bare, state.spec.model))
        names = ("rounds", "moved_ranks", "scoring_forwards", "scoring_rows", "scoring_tokens")
        self.counts |= dict.fromkeys(names, 0) | {"scoring_seconds": 0.0}

    def ranks(self) -> dict[str, int]:
        """Return every layer's rank."""
        return {name: layer.rank for name, layer in self.layers.items()}

    def allocate(self, step: int) -> None:
        """Score and move ranks if a round is due after this step."""
        if step not in self.at:
            return
        started = time.monotonic()
        scores = self.scores()
        self.counts["scoring_seconds"] += time.monotonic() - started
        keep, added = decide(scores, self.pruned)
        self.counts["rounds"] += 1
        self._check_widths(keep, added)
        before, optimizer = self.ranks(), self.state.optimizer
        for name, layer in self.layers.items():
            if not keep[name].all():
                prune(layer, keep[name], optimizer)
            if added[name]:
                seed = derive_seed(self.state.spec.seed, "grow", name, int(self.counts["rounds"]))
                grow(layer, added[name], seed, optimizer)
        self._rewrap()
        moved = sum(max(0, before[name] - rank) for name, rank in self.ranks().items())
        self.counts["moved_ranks"] += moved
        self.say(
            f"round {self.counts['rounds']:g} of {len(self.at)} after step {step}: {self.pruned} "
            f"ranks replaced, {moved} of them in another layer; ranks "
            f"{min(self.ranks().values())} to {max(self.ranks().values())}"
        )

    def scores(self) -> Scores:
        """Score every rank; each process scores a share, and all get the same numbers."""
        accelerator, model = self.state.accelerator, self.state.bare
        training = model.training
        model.eval()
        share, alone = (accelerator.process_index, accelerator.num_processes), self.settings.alone
        importances = importance(
            self.layers, self.score, alone, share, gather_object, self.prefix, self.state.heed
        )
        model.train(training)
        whole = 2 if alone == "model" else 1
        forwards = 2 * sum(self.ranks().values()) + whole * accelerator.num_processes
        tokens = sum(batch["input_ids"].numel() for batch, _ in self.batches)
        self.counts["scoring_forwards"] += forwards
        self.counts["scoring_rows"] += forwards * self.settings.rows
        self.counts["scoring_tokens"] += forwards * tokens
        return importances

    @torch.no_grad()
    def score(self) -> float:
        """Return S, minus the mean loss on the fixed batch."""
        losses = []
        for batch, labels in self.batches:
            logits = self.state.bare(**batch).logits.float()
            losses.append(row_losses(self.state.spec.task, logits, labels))
        return -torch.cat(losses).cpu().double().sum().item() / self.weight  # one copy

    def _batch(self, split: Examples, rows: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        """Return inputs and labels of some rows, on the device."""
        batch = collate(split, rows, self.state.spec, self.state.pad)
        labels = labels_tensor(split, rows, self.state.spec)
        *inputs, labels = to_device(self.state, *batch.values(), labels)
        return dict(zip(batch, inputs, strict=True)), labels

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take up the saved ranks and counts."""
        super().load_state_dict(content)
        self._rewrap()

    def restore(self, ranks: dict[str, int]) -> None:
        """Give the layers these ranks, all values zero."""
        for name, rank in ranks.items():
            resize(self.layers[name], rank, self.state.optimizer)

    def _pruned(self) -> int:
        """Return n_A, the ranks moved in a round.

        Raises:
            UserError: it is not below the number of the model's ranks.
        """
        words = {"modules": len(self.layers), "kinds": len(self.state.spec.lora.targets)}
        asked, total = self.settings.pruned, sum(self.ranks().values())
        count = words[asked] if isinstance(asked, str) else asked
        if count >= total:
            raise UserError(
                f"alora.pruned: {count} of the model's {total} ranks in every round "
                f"(legal: below {total}; a higher rank has more)"
            )
        return count

    def _check_widths(self, keep: dict[str, Tensor], added: dict[str, int]) -> None:
        """Refuse a round that gives a layer more ranks than an update of its shape can have."""
        for name, layer in self.layers.items():
            rank, width = int(keep[name].sum()) + added[name], layer.width
            if rank > width:
                raise UserError(
                    f"alora: round {self.counts['rounds']:g} would give {name} rank {rank}, above "
                    f"its width {width}; take a lower rank, fewer rounds or a lower alora.pruned"
                )

    def _rewrap(self) -> None:
        """Wrap the model anew, because DDP's buckets have the old shapes."""
        old, accelerator = self.state.model, self.state.accelerator
        if isinstance(old, DistributedDataParallel):
            places = {"device_ids": old.device_ids, "output_device": old.output_device}
            asked = accelerator.ddp_handler.to_kwargs()  # as when Accelerate wrapped it
            self.state.model = DistributedDataParallel(old.module, **places, **asked)
            models = accelerator._models
            models[:] = [self.state.model if model is old else model for model in models]


def round_steps(settings: ALoRASettings, per_epoch: int, steps: int) -> list[int]:
    """Return the steps after which ranks move, which are all before the last step.

    Raises:
        UserError: the run ends before the first of them.
    """
    at = settings.steps(per_epoch)
    rounds = [step for step in at if step < steps]
    if not rounds:
        raise UserError(
            f"alora.first: the first round would be after step {at[0]}, the run has {steps} "
            f"(legal: below {steps / per_epoch:g} epochs)"
        )
    return rounds


def scoring_rows(settings: ALoRASettings, rows: int, seed: int) -> np.ndarray:
    """Return the rows of the fixed batch, drawn by the run's seed, in ascending order.

    Raises:
        UserError: the split has fewer rows.
    """
    if settings.rows > rows:
        raise UserError(
            f"alora.rows: {settings.rows} asked, but split {settings.split!r} has {rows} "
            f"(legal: 1 to {rows})"
        )
    generator = np.random.default_rng(derive_seed(seed, "scoring rows"))
    return np.sort(generator.permutation(rows)[: settings.rows])


def importance(
    layers: Layers,
    score: Callable[[], float],
    alone: str = "model",
    share: tuple[int, int] = (0, 1),
    gather: Callable[[list], list] = list,
    prefix: KeptOutputs | None = None,
    heed: Callable[[], None] = lambda: None,
) -> Scores:
    """Score every rank: IS(r) = S(M) - S(M\\r) + S(M_r).

    Args:
        layers: the adapters of a model by name.
        score: S of the model as it stands.
        alone: what M_r switches off: all other ranks of the "model", or of the rank's own "module".
        share: this process's number, and n, how many there are; each scores every n-th rank.
        gather: joins the lists of all processes.
        prefix: keeps outputs of the model's blocks, so that passes may start at a rank's block.
        heed: called before each rank, while no rank is switched off; it may raise.
    """
    ranks = [(name, rank) for name, layer in layers.items() for rank in range(layer.rank)]
    mine = ranks[share[0] :: share[1]]
    none = {name: layer.lora_B.new_zeros(layer.rank) for name, layer in layers.items()}
    prefix, scored = prefix or KeptOutputs(), []
    with prefix.kept_as("whole"):
        whole = score()
    if alone == "model":
        with gated(layers, none), prefix.kept_as("none"):
            score()
    others, below = (none, "none") if alone == "model" else ({}, "whole")
    for name, rank in progress(mine, len(mine), "score ranks", quiet=share[0] > 0):
        heed()
        one = torch.zeros_like(none[name])
        one[rank] = 1
        with gated(layers, {name: 1 - one}), prefix.below(name, "whole"):
            without = score()
        with gated(layers, {**others, name: one}), prefix.below(name, below):
            only = score()
        scored.append((name, rank, whole - without + only))
    scores = {name: torch.empty(layer.rank).double() for name, layer in layers.items()}
    for name, rank, value in gather(scored):
        scores[name][rank] = value
    return scores


def decide(scores: Scores, count: int) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Choose the `count` ranks to take away, and the layers that get as many new ones.

    Of ranks with equal scores, the earlier one is taken away.

    Returns:
        {name: (rank,) of booleans, true where the rank stays}, and {name: number of new ranks}.
    """
    places = [(name, rank) for name, values in scores.items() for rank in range(len(values))]
    lowest = sorted(places, key=lambda place: scores[place[0]][place[1]].item())[:count]
    keep = {name: torch.ones(len(values), dtype=torch.bool) for name, values in scores.items()}
    for name, rank in lowest:
        keep[name][rank] = False
    takers = [name for name in scores if keep[name].all()] or list(scores)
    means = {n: v.mean().item() if len(v) else -math.inf for n, v in scores.items()}
    takers.sort(key=lambda name: -means[name])
    each, more = divmod(count, len(takers))
    added = dict.fromkeys(scores, 0)
    added |= {name: each + (place < more) for place, name in enumerate(takers)}
    return keep, added
