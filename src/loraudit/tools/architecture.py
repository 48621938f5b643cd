"""Propose a model's entry by looking at its modules: which linear layers are which matrices.

Linear layers whose names differ in one number are one matrix in every layer. What it is called is
guessed from the end of its name. If a layer holds several matrices (a name with `qkv`, or an MLP
whose first layer is twice as high as its last one is wide), the model itself is asked how they lie:

    without queries attention is even, and so it is without keys: equal outputs
    without values there is no attention, and so there is without `o` (but for its biases)
    an MLP turns its sign with `up`, and so it does with `down`

The first layout with which this holds is taken. The model's weights are random, since only its
structure is asked for.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loraudit.adapters.base_layers import is_linear, linear_sizes, targets_of
from loraudit.base.errors import UserError
from loraudit.studies.entries import MATRICES, FolderSource, Matrix, ModelEntry

ENDS: dict[Matrix, str] = {
    "q": r"q|q_proj|q_lin|query|query_proj|wq|to_q",
    "k": r"k|k_proj|k_lin|key|key_proj|wk|to_k",
    "v": r"v|v_proj|v_lin|value|value_proj|wv|to_v",
    "o": r"o|o_proj|out_proj|out_lin|to_out",
    "gate": r"gate|gate_proj",
    "up": r"up|up_proj|fc1|lin1|c_fc|dense_h_to_4h|intermediate\.dense|ffn|wi|wi_0|fc_in",
    "down": r"down|down_proj|fc2|lin2|dense_4h_to_h|ffn_output|wo|fc_out",
}
"""Last parts of names. In an attention block, other names that end in an output are `o`."""

FUSED = r"(.*qkv.*|c_attn|query_key_value)"
ATTENTION = r"(^|[._])(self_)?(attn|attention|self_attention)([._]|$)"
OUTPUTS = r"dense|c_proj|wo|output\.dense"


class Proposal(NamedTuple):
    """What was found: modules and head of an entry, the head's output layer, and layers left out.

    `modules` are as models.yaml has them: names of layers, or keys and values of a part of one.
    """

    modules: dict[Matrix, Any]
    head: tuple[str, ...]
    output: str
    left_out: tuple[str, ...]


def propose(config: Any, pretrained: frozenset[str] = frozenset()) -> Proposal:
    """Propose modules and head of a model's entry.

    Args:
        config: transformers' configuration of the model, with the number of scores.
        pretrained: names of the checkpoint's tensors. Modules beside the base model that are all
            in it are no part of the head, unless the head's last layer is in it too.

    Raises:
        UserError: no matrix or no head was found, with the names of the linear layers.
    """
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    groups = _groups(model)
    base, head, output = _head(model, pretrained, config.num_labels)
    modules: dict[Matrix, Any] = {}
    left: list[str] = []
    for pattern in groups:
        matrix = _matrix(pattern)
        if matrix and matrix not in modules and not re.search(FUSED, _last(pattern), re.I):
            modules[matrix] = pattern
        else:
            left.append(pattern)
    asked = [pattern for pattern in left if _may_be_fused(pattern)]
    if isinstance(modules.get("up"), str) and "gate" not in modules:
        asked.append(modules["up"])  # a gate may be hidden in `up`
    small = _small_model(config) if asked and head else model
    for pattern in asked if head else ():
        if found := _fused(small, pattern, modules, (head, output)):
            left = [other for other in left if other != pattern]
            modules = {k: v for k, v in modules.items() if v != pattern} | found
    if not modules or not head:
        linear = [*groups, *(name for name, layer in model.named_modules() if is_linear(layer))]
        names = ", ".join(list(dict.fromkeys(linear))[:20])
        lacks, option = ("no head that gives the scores", "it with --head")
        if not modules:
            lacks, option = "no matrix", "them with --module and --head"
        raise UserError(
            f"{lacks} was recognised in {base!r}; name {option}. Linear layers: {names}"
        )
    ordered = {name: modules[name] for name in MATRICES if name in modules}
    return Proposal(ordered, head, output, tuple(left))


def _small_model(config: Any) -> nn.Module:
    """Make a random model of the same kind in float64, with two layers where the config allows it.

    Weights and biases are large enough for outputs to show what is changed in them.
    """
    from transformers import AutoModelForSequenceClassification

    few = copy.deepcopy(config)
    try:
        few.num_hidden_layers = min(2, config.num_hidden_layers)
        model = AutoModelForSequenceClassification.from_config(few)
    except Exception:  # a list in it has one entry per layer, or it knows no such number
        model = AutoModelForSequenceClassification.from_config(config)
    model = model.double().eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def _may_be_fused(pattern: str) -> bool:
    """Tell whether a layer may hold several matrices, by its name."""
    return re.search(rf"{FUSED}|gate_up|(^|[._])wi$", _last(pattern), re.I) is not None


def _groups(model: nn.Module) -> dict[str, list[str]]:
    """Return {name with * for the layer number: full names} of the linear layers in blocks."""
    groups: dict[str, list[str]] = {}
    for name, layer in model.named_modules():
        if is_linear(layer) and re.search(r"\.\d+\.", name):
            groups.setdefault(re.sub(r"\.\d+\.", ".*.", name, count=1), []).append(name)
    return groups


def _head(
    model: nn.Module, pretrained: frozenset[str], outputs: int
) -> tuple[str, tuple[str, ...], str]:
    """Return the base model's name, the modules of the head, and its last layer."""
    base = getattr(model, "base_model_prefix", "")
    beside = [
        n for n, m in model.named_children() if n != base and any(True for _ in m.parameters())
    ]
    layers = [n for n, m in model.named_modules() if is_linear(m) and n.split(".")[0] in beside]
    last = [n for n in layers if (linear_sizes(model, n) or (0, 0))[1] == outputs]
    output = last[-1] if last else ""
    if f"{output}.weight" in pretrained:  # a checkpoint of a classifier, whose head came with it
        pretrained = frozenset()
    head = [
        name
        for name in beside
        if f"{output}.".startswith(f"{name}.") or not _is_pretrained(model, name, pretrained)
    ]
    head.sort(key=lambda name: f"{output}.".startswith(f"{name}."))  # the output's module last
    return base, tuple(head) if output else (), output


def _is_pretrained(model: nn.Module, name: str, pretrained: frozenset[str]) -> bool:
    tensors = [f"{name}.{key}" for key, _ in model.get_submodule(name).named_parameters()]
    return all(tensor in pretrained for tensor in tensors)


def _last(pattern: str) -> str:
    return pattern.rpartition(".")[2]


def _matrix(pattern: str) -> Matrix | None:
    """Guess a matrix from the part of its name after the layer number."""
    inside = pattern.partition("*.")[2].lower()
    attention = re.search(ATTENTION, inside) is not None
    if attention and re.search(rf"(^|\.)({OUTPUTS})$", inside):
        return "o"
    for matrix, ends in ENDS.items():
        if re.search(rf"(^|\.)({ends})$", inside) and (matrix in "qkvo") <= (
            attention or matrix != "o" or "out_proj" in inside
        ):
            return matrix
    return "down" if re.search(r"(^|\.)(output\.dense|c_proj)$", inside) else None


def _fused(
    model: nn.Module, pattern: str, modules: dict[Matrix, Any], head: tuple
) -> dict[Matrix, Any]:
    """Return the matrices that a layer holds, if it holds several and the model bears it out."""
    attention = re.search(FUSED, _last(pattern), re.I) is not None
    names = ("q", "k", "v") if attention else ("gate", "up")
    others = {k: v for k, v in modules.items() if v != pattern}
    if ("o" if attention else "down") not in others:
        return {}
    for made in _layouts(model, pattern, names):
        entry = ModelEntry(
            name="proposed",
            source=FolderSource(folder="nowhere"),
            modules={**others, **made},
            head=head[0],
            output=head[1],
        )
        try:
            if _right(model, entry, attention):
                return {**made}
        except UserError:  # the layer can't be cut like this
            continue
    return {}


def _layouts(model: nn.Module, pattern: str, names: tuple[str, ...]) -> Iterator[dict]:
    """Yield the ways in which a layer may hold these matrices."""
    if names == ("gate", "up"):
        for order in (names, names[::-1]):
            yield {n: {"module": pattern, "part": i, "of": 2} for i, n in enumerate(order)}
        return
    heads, shared = "num_attention_heads", "num_key_value_heads"
    if not hasattr(model.config, heads):
        heads = "n_head"
    grouped = getattr(model.config, shared, None) not in (None, getattr(model.config, heads, None))
    ways: list[dict] = [{"of": [heads, shared, shared]}] if grouped else [{"of": 3}]
    ways += [{"of": 3, "repeats": heads}, {"of": [heads, 1, 1]}]
    for way in ways:
        yield {n: {"module": pattern, "part": i, **way} for i, n in enumerate(names)}


def _right(model: nn.Module, entry: ModelEntry, attention: bool) -> bool:
    """Tell whether the model behaves as the names of the parts say."""
    if attention:
        return (
            _same(_scaled(model, entry, "q", 0.0), _scaled(model, entry, "k", 0.0))
            and _same(_scaled(model, entry, "v", 0.0), _scaled(model, entry, "o", 0.0))
            and not _same(_scaled(model, entry, "q", 0.0), _scaled(model, entry, "v", 0.0))
        )
    return _same(_scaled(model, entry, "up", -1.0), _scaled(model, entry, "down", -1.0))


def _same(one: Tensor, two: Tensor) -> bool:
    return bool(torch.allclose(one, two, atol=1e-8, rtol=1e-8))


@torch.no_grad()
def _scaled(model: nn.Module, entry: ModelEntry, matrix: Matrix, factor: float) -> Tensor:
    """Return the outputs with a matrix and its biases multiplied in every layer.

    The biases of `o` and `down` are 0 for this, as those of values and `up` act through them.
    """
    model = copy.deepcopy(model)
    ends = tuple(m for m in ("o", "down") if m in entry.modules)
    for target in targets_of(model, entry, ends):
        layer = model.get_submodule(target.layer)
        if layer.bias is not None:
            layer.bias.zero_()
    for target in targets_of(model, entry, (matrix,)):
        layer = model.get_submodule(target.layer)
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        for start, stop in target.rows or ((0, len(weight)),):
            weight[start:stop] *= factor
            if layer.bias is not None:
                layer.bias[start:stop] *= factor
    tokens = torch.arange(4, 10) % model.config.vocab_size
    return model(input_ids=tokens[None]).logits
