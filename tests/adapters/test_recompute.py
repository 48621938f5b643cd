"""Blocks that compute again in the backward pass: the same bits, in less memory."""

import pytest
import torch

from loraudit.adapters.base_layers import hold_frozen
from loraudit.adapters.fast_base import fast_base
from loraudit.adapters.quantise import quantise
from loraudit.adapters.recompute import recompute_blocks
from loraudit.base.errors import UserError
from loraudit.base.yaml_file import read_yaml
from loraudit.training.method import method_of
from tiny import changed, make_spec, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

FAMILIES = sorted(read_yaml("config/models.yaml")["families"])

WAYS = {
    "fast": {},
    "plain": {"compute": "plain"},
    "dropout of LoRA": {"lora_dropout": 0.3},
    "peft": {"method": "peft"},
    "dora": {"method": "peft", "peft": {"use_dora": True}},
    "full": {"method": "full"},
    "bitfit": {"method": "bitfit"},
    "head": {"method": "head"},
    "frozen head": {"head": "frozen"},
    "4 bits": {"base_bits": 4, "base_group": 16},
    "4 bits, peft": {"base_bits": 4, "base_group": 16, "method": "peft"},
    "bf16": {"precision": "bf16"},
}
STEPS = 3


def made(spec, family: str, dtype: torch.dtype) -> torch.nn.Module:
    """Make a run's model as `train` does, with dropout, which not every family has by itself."""
    model = tiny_model(family).to(dtype)
    model.config.use_cache = False  # as `load_base` does: the cache copies keys into another layout
    for module in model.modules():
        if type(module) is torch.nn.Dropout:
            module.p = 0.2
    if spec.base_bits:
        quantise(model, spec)
    model = method_of(spec).apply(fast_base(model, spec), spec)
    if spec.precision == "bf16":
        hold_frozen(model, spec.model.head, torch.bfloat16)
    return recompute_blocks(model, spec).train()


def trained(model: torch.nn.Module, spec, batch: dict) -> list[torch.Tensor]:
    """Train a few steps; return losses, all weights that are trained, and the next random bits."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    torch.manual_seed(7)
    losses = []
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16"):
            loss = model(**batch).logits.float().square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return [*losses, *(weight.detach() for weight in weights), torch.get_rng_state()]


def both(family: str, dtype: torch.dtype, batch: dict, **changes) -> list[list[torch.Tensor]]:
    """Train without and with recomputing."""
    found = []
    for recompute in ("none", "blocks"):
        spec = make_spec(model=tiny_entry(family), recompute=recompute, **changes)
        found.append(trained(made(spec, family, dtype), spec, batch))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_weights_of_every_family_are_the_same_bits(family, batch):
    targets = tuple(tiny_entry(family).modules)
    plain, again = both(family, torch.float64, batch, targets=targets, rank=2, alpha=4)
    assert all(map(torch.equal, plain, again))


@pytest.mark.parametrize("way", WAYS)
def test_losses_and_weights_are_the_same_bits_however_a_run_trains(way, batch):
    dtype = torch.float32 if "bits" in way or way == "bf16" else torch.float64
    plain, again = both("roberta", dtype, batch, **WAYS[way])
    assert all(map(torch.equal, plain, again))


def kept_bytes(model: torch.nn.Module, batch: dict) -> tuple[int, int]:
    """Return the bytes that a step's graph keeps, and how often a layer of a block runs in it."""
    sizes, runs = [], []
    layer = next(m for n, m in model.named_modules() if n.endswith("layer.0.intermediate.dense"))
    layer.register_forward_hook(lambda *_: runs.append(1))

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch).logits.sum()
    kept = sum(sizes)
    loss.backward()
    return kept, len(runs)


def test_nothing_inside_the_blocks_is_kept_and_each_runs_twice(batch):
    found = []
    for recompute in ("none", "blocks"):
        spec = make_spec(model=tiny_entry("roberta"), recompute=recompute)
        found.append(kept_bytes(made(spec, "roberta", torch.float32), batch))
    (whole, once), (less, twice) = found
    assert (once, twice) == (1, 2)
    assert less < whole / 4


@pytest.mark.parametrize("method", ["lora", "peft"])
def test_the_embeddings_get_no_backward_pass_for_it(method, batch):
    spec = make_spec(model=tiny_entry("roberta"), recompute="blocks", method=method)
    model, seen = made(spec, "roberta", torch.float32), []
    embeddings = next(m for n, m in model.named_modules() if n.endswith("roberta.embeddings"))
    embeddings.register_forward_hook(lambda m, i, out: seen.append(out.requires_grad))
    model(**batch)
    assert seen == [False]


def test_evaluation_computes_each_block_once(batch):
    spec = make_spec(model=tiny_entry("roberta"), recompute="blocks")
    model, runs = made(spec, "roberta", torch.float32).eval(), []
    layer = next(m for n, m in model.named_modules() if n.endswith("layer.0.intermediate.dense"))
    layer.register_forward_hook(lambda *_: runs.append(1))
    with torch.inference_mode():
        model(**batch)
    assert runs == [1]


def test_a_model_whose_blocks_are_not_known_is_refused():
    entry = tiny_entry().model_copy(update={"modules": {"q": "one.*.q", "v": "other.*.v"}})
    with pytest.raises(UserError, match=r"recompute: the modules of model 'tiny'.*do not agree"):
        recompute_blocks(tiny_model(), changed(make_spec(), model=entry, recompute="blocks"))


def test_a_compiled_run_does_not_recompute():
    with pytest.raises(UserError, match="recompute 'blocks' goes with compute fast or plain"):
        make_spec(recompute="blocks", compute="compiled")
