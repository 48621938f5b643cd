"""Measure what LoRA costs in training: per layer, per step, in memory, and what it grows with.

Random models of all-MiniLM-L6-v2's and RoBERTa-base's shape, one thread, batch 8 x 64, no padding.

    python benchmarks/speed.py [layer profile step dropout memory recompute growth]
                               [--rounds 30] [--out DIR]

- layer: forward and backward of one linear layer; LoRA's share is its time less the frozen
  layer's, over PEFT's share in the same round.
- profile: the parts of that layer, each alone.
- step: forward, backward, clipping and AdamW, over the frozen limit: the frozen model's forward and
  backward to layer 0's input, below which nothing that trains an adapter in layer 0 can come.
- dropout: the model's dropout by fast_dropout.py over torch's, alone and in a training step.
- memory: the highest resident memory of three steps at batch 16 x 128 above that of the loaded
  model after one small forward pass; each in a process of its own. The frozen limit keeps what the
  way back to layer 0 needs, and nothing for LoRA.
- recompute: the memory and time of a step of RoBERTa-base's and -large's shape at 2 x 512 tokens,
  without and with `recompute: blocks`, beside PEFT without and with its own gradient checkpointing;
  each in a process of its own.
- growth: step and memory against rank, tokens and adapted matrices.
"""

import argparse
import copy
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import loralib
import pandas as pd
import peft
import psutil
import torch
from torch import nn

from common import RANK, interleaved, random_model, spec_of, spread
from loraudit.adapters import inject, peft_twin
from loraudit.adapters.base_layers import freeze, target_modules
from loraudit.adapters.fast_base import fast_base
from loraudit.adapters.fast_dropout import FastDropout, attend
from loraudit.adapters.fast_lora import FastLoRALinear
from loraudit.adapters.first_token import shorten
from loraudit.adapters.lora import LoRALinear
from loraudit.adapters.recompute import recompute_blocks
from loraudit.base.files import write_atomic, write_text
from loraudit.report.formatting import markdown
from loraudit.studies.entry_files import load_model
from loraudit.studies.expand import parse_targets
from loraudit.studies.spec import RunSpec
from loraudit.training.methods.baselines import FullFineTuning

MODELS = ("minilm", "roberta-base")
LAYERS = ((384, 384), (384, 1536), (768, 768), (768, 3072))
MATRICES = parse_targets("all", load_model(MODELS[0]))  # those of the other models too
TARGETS = {"q+v": ("q", "v"), "all": MATRICES}
REPEATED = 10
RANKS = (1, 4, 16, 64, 256)
LONG = (2, 512)
"""Rows and tokens of the batches that `recompute` is measured on."""


def limit(base: nn.Module, spec: RunSpec) -> nn.Module:
    """Freeze all and ask for the gradient of the embeddings' output, layer 0's input."""
    freeze(base, spec.model.head, train_head=False)
    base.base_model.embeddings.register_forward_hook(lambda m, i, out: out.requires_grad_())
    return base


def with_loralib(base: nn.Module, spec: RunSpec) -> nn.Module:
    """Put loralib's layers on, as microsoft/LoRA's examples do."""
    freeze(base, spec.model.head, train_head=True)
    for name in target_modules(base, spec.model, spec.lora.targets):
        old = base.get_submodule(name)
        layer = loralib.Linear(
            old.in_features, old.out_features, r=spec.lora.rank, lora_alpha=spec.lora.alpha
        )
        layer.weight, layer.bias = old.weight, old.bias
        base.set_submodule(name, layer)
    return base


def plain(spec: RunSpec) -> RunSpec:
    """Return the spec without the fast path."""
    return spec.model_copy(update={"compute": "plain"})


METHODS: dict[str, Callable[[nn.Module, RunSpec], nn.Module]] = {
    "frozen limit": limit,
    "ours, plain": lambda base, spec: inject.apply(base, plain(spec)),
    "ours, all tokens": inject.apply,
    "ours": lambda base, spec: inject.apply(fast_base(base, spec), spec),
    "PEFT": peft_twin.apply,
    "loralib": with_loralib,
    "full fine-tuning": lambda base, spec: FullFineTuning().apply(
        base, spec.model_copy(update={"method": "full", "adapter": None})
    ),
}


def recomputed(base: nn.Module, spec: RunSpec) -> nn.Module:
    """Put our LoRA on, with blocks that recompute."""
    again = spec.model_copy(update={"recompute": "blocks"})
    return recompute_blocks(METHODS["ours"](base, spec), again)


def peft_checkpointed(base: nn.Module, spec: RunSpec) -> nn.Module:
    """Put PEFT's LoRA on a model that recomputes, as PEFT and the Trainer do it."""
    base.activation_checkpointing_enable({"use_reentrant": False})
    return peft_twin.apply(base, spec)


RECOMPUTED: dict[str, Callable[[nn.Module, RunSpec], nn.Module]] = {
    "ours": METHODS["ours"],
    "ours, recompute: blocks": recomputed,
    "PEFT": METHODS["PEFT"],
    "PEFT, gradient checkpointing": peft_checkpointed,
}


def layers(rounds: int) -> pd.DataFrame:
    """Measure LoRA's share of one layer, over PEFT's."""
    tables = []
    for d_in, d_out in LAYERS:
        for rows, tokens in ((8, 64), (16, 64)):
            seconds = interleaved(layer_calls(d_in, d_out, rows, tokens), rounds)
            share = seconds.sub(seconds["frozen"], axis=0).div(
                seconds["PEFT"] - seconds["frozen"], axis=0
            )
            table = spread(share.drop(columns="frozen"))
            table["ms"] = 1000 * seconds.median().reindex(table.what).to_numpy()
            tables.append(table.assign(setting=f"{d_in} to {d_out}, {rows} x {tokens} tokens"))
    return pd.concat(tables, ignore_index=True).assign(part="layer")


def layer_calls(d_in: int, d_out: int, rows: int, tokens: int) -> dict[str, Callable]:
    """Return forward-and-backward calls of the frozen layer and each LoRA on it."""
    torch.manual_seed(0)
    base = nn.Linear(d_in, d_out).requires_grad_(False)
    config = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=["0"])
    other = loralib.Linear(d_in, d_out, r=RANK, lora_alpha=16)
    other.weight.requires_grad_(False), other.bias.requires_grad_(False)
    made = {
        "frozen": base,
        "ours": FastLoRALinear(base, RANK, 16),
        "ours, plain": LoRALinear(base, RANK, 16),
        "PEFT": peft.get_peft_model(nn.Sequential(copy.deepcopy(base)), config).base_model.model,
        "loralib": other,
    }
    x = torch.randn(rows, tokens, d_in, requires_grad=True)
    dh = torch.randn(rows, tokens, d_out)

    def call(layer: nn.Module) -> Callable:
        def forward_backward() -> None:
            x.grad = None
            layer.zero_grad()
            layer(x).backward(dh)

        return forward_backward

    return {name: call(layer) for name, layer in made.items()}


def profile(rounds: int) -> pd.DataFrame:
    """Time the parts of one LoRA layer alone, in microseconds: where `layer`'s share goes.

    "node and memory" is what the whole adds to the frozen layer beyond its own products: autograd's
    node in Python, new tensors, and x and dh that are no longer in the cache on the way back.
    """
    tables = []
    for d_in, d_out in LAYERS:
        x, dh = torch.randn(512, d_in), torch.randn(512, d_out)
        a, b = torch.randn(RANK, d_in), torch.randn(d_out, RANK)
        low, d = a @ x.T, b.T @ dh.T
        h, dx = torch.randn(512, d_out), torch.randn(512, d_in)
        parts = {
            "A x^T": lambda a=a, x=x: a @ x.T,
            "h += B low": lambda h=h, low=low, b=b: h.addmm_(low.T, b.T.contiguous()),
            "B^T dh^T": lambda b=b, dh=dh: b.T.contiguous() @ dh.T,
            "dx += A^T d": lambda dx=dx, d=d, a=a: dx.addmm_(d.T, a),
            "dA = d x": lambda d=d, x=x: d @ x,
            "dB^T = low dh": lambda low=low, dh=dh: low @ dh,
        }
        layer = layer_calls(d_in, d_out, 8, 64)
        calls = {**parts, "frozen layer": layer["frozen"], "ours": layer["ours"]}
        calls["PEFT"] = layer["PEFT"]
        times = 1e6 * interleaved(calls, rounds).median()
        rest = times["ours"] - times["frozen layer"] - times[list(parts)].sum()
        times["node and memory"] = rest
        setting = f"{d_in} to {d_out}, 8 x 64 tokens"
        tables.append(times.rename(setting))
    return pd.concat(tables, axis=1).round(0).rename_axis("part, microseconds").reset_index()


def step_call(
    name: str, base: nn.Module, spec: RunSpec, rows: int, tokens: int, dropped: bool = True
) -> Callable:
    """Return one training step of a method; of the frozen limit, forward and backward alone."""
    model = (METHODS | RECOMPUTED)[name](base, spec).train(dropped)
    batch = {"input_ids": torch.randint(1000, 30000, (rows, tokens))}
    labels = torch.randint(0, 2, (rows,))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None

    def step() -> None:
        nn.functional.cross_entropy(model(**batch).logits, labels).backward()
        if optimizer:
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return step


def steps(rounds: int) -> pd.DataFrame:
    """Measure a training step of each method over the frozen limit."""
    tables = []
    for name in MODELS:
        base = random_model(name)
        count = rounds if name == "minilm" else max(5, rounds // 3)
        for shown, targets in TARGETS.items():
            spec = spec_of(name, targets=targets)
            calls = {m: step_call(m, copy.deepcopy(base), spec, 8, 64) for m in METHODS}
            seconds = interleaved(calls, count)
            for to in ("frozen limit", "PEFT"):
                table = spread(seconds.div(seconds[to], axis=0)).assign(to=to)
                table["ms"] = 1000 * seconds.median().to_numpy()
                tables.append(table.assign(setting=f"{name}, {shown}, 8 x 64 tokens"))
            print(f"step: {name}, {shown}: done", file=sys.stderr, flush=True)
    return pd.concat(tables, ignore_index=True).assign(part="step")


def dropout(rounds: int) -> pd.DataFrame:
    """Measure what dropout takes: one tensor's, attention's, and a whole step's, over torch's."""
    own, tables = FastDropout(0.1), []
    for rows, tokens in ((8, 32), (8, 64)):
        x = torch.randn(rows, tokens, 384, requires_grad=True)
        qkv = torch.randn(3, rows, 12, tokens, 32, requires_grad=True)
        read = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool)
        cases = {
            "one tensor": {
                "torch's": lambda x=x: nn.functional.dropout(x, 0.1),
                "ours": lambda x=x: own(x),
                "none": lambda x=x: nn.functional.dropout(x, 0.0),
            },
            "attention": {
                "torch's": lambda q=qkv, m=read: torchs_attention(*q, m, 0.1),
                "ours": lambda q=qkv, m=read: attend(*q, m, own, 32**-0.5),
                "none": lambda q=qkv, m=read: torchs_attention(*q, m, 0.0),
            },
        }
        spec, base = spec_of(), random_model("minilm")
        made = {"torch's": shorten, "ours": fast_base, "none": shorten}
        steps = {}
        for name, change in made.items():
            model, dropped = change(copy.deepcopy(base), spec), name != "none"
            steps[name] = step_call("ours, all tokens", model, spec, rows, tokens, dropped)
        calls = {w: {n: there_and_back(c) for n, c in each.items()} for w, each in cases.items()}
        for what, each in (calls | {"training step, q+v": steps}).items():
            seconds = interleaved(each, rounds)
            table = spread(seconds.div(seconds["torch's"], axis=0)).assign(of=what)
            table["ms"] = 1000 * seconds.median().to_numpy() / (1 if each is steps else REPEATED)
            tables.append(table.assign(setting=f"minilm, {rows} x {tokens} tokens"))
    return pd.concat(tables, ignore_index=True).assign(part="dropout", to="torch's")


def torchs_attention(q, k, v, mask, p: float) -> torch.Tensor:
    """Return torch's attention with dropout."""
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)


def there_and_back(call: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Return what computes a function's value and gradients `REPEATED` times."""

    def repeated() -> None:
        for _ in range(REPEATED):
            y = call()
            y.backward(y.detach())

    return repeated


def alone(
    method: str, model: str, targets: str, rank: int, rows: int, tokens: int
) -> tuple[float, float]:
    """Return the MiB that training takes above the loaded model, and the CPU seconds of a step.

    Both are from a process of its own.
    """
    command = [sys.executable, __file__, "--alone", method, model, targets]
    command += map(str, (rank, rows, tokens))
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    memory, seconds = map(float, done.stdout.split())
    return memory, seconds


def alone_here(
    method: str, model: str, targets: str, rank: str, rows: str, tokens: str
) -> tuple[float, float]:
    """Measure the same in this process; the first of three steps is not timed."""
    # RoBERTa-large has the family of -base, and its names of layers.
    entry = "roberta-base" if model == "roberta-large" else model
    spec = spec_of(entry, targets=tuple(targets.split("+")), rank=int(rank))
    base = random_model(model)
    with torch.inference_mode():  # what libraries take at their first use is not the method's
        base(input_ids=torch.ones(1, 8, dtype=torch.long))
    before = psutil.Process().memory_info().rss / 2**20
    step = step_call(method, base, spec, int(rows), int(tokens))
    step()
    started = time.process_time()
    for _ in range(2):
        step()
    seconds = (time.process_time() - started) / 2
    lines = Path("/proc/self/status").read_text().splitlines()
    # Not getrusage's figure: a process inherits its parent's.
    highest = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return highest / 1024 - before, seconds


def memory(rounds: int) -> pd.DataFrame:
    """Measure each method's memory above the loaded model, in MiB and over PEFT's."""
    rows = []
    names = list(METHODS)
    for shown, targets in TARGETS.items():
        found = pd.DataFrame(
            [
                {name: alone(name, "minilm", "+".join(targets), RANK, 16, 128)[0] for name in names}
                for _ in range(max(3, rounds // 10))
            ]
        )
        table = spread(found.div(found["PEFT"], axis=0)).assign(MiB=found.median().to_numpy())
        rows.append(table.assign(setting=f"minilm, {shown}, 16 x 128 tokens"))
        print(f"memory: {shown}: done", file=sys.stderr, flush=True)
    return pd.concat(rows, ignore_index=True).assign(part="memory", to="PEFT")


def recompute(rounds: int) -> pd.DataFrame:
    """Measure memory and time of a step with blocks that recompute, over ours without."""
    tables, names = [], list(RECOMPUTED)
    for model in ("roberta-base", "roberta-large"):
        found: list[dict[str, tuple[float, float]]] = []
        for _ in range(max(3, rounds // 10)):
            order = random.Random(len(found)).sample(names, len(names))
            found.append({name: alone(name, model, "q+v", RANK, *LONG) for name in order})
        for place, (measure, unit, factor) in enumerate(
            (("memory", "MiB", 1), ("time", "ms", 1000))
        ):
            values = pd.DataFrame([{n: one[n][place] for n in names} for one in found])
            table = spread(values.div(values["ours"], axis=0))
            measured = (factor * values.median()).round(0).to_numpy()
            table = table.assign(measure=f"{measure}, {unit}", measured=measured)
            tables.append(table.assign(setting=f"{model}, q+v, {LONG[0]} x {LONG[1]} tokens"))
        print(f"recompute: {model}: done", file=sys.stderr, flush=True)
    return pd.concat(tables, ignore_index=True).assign(part="recompute", to="ours")


def growth(rounds: int) -> pd.DataFrame:
    """Measure step time and memory of ours and PEFT against rank, tokens and matrices."""
    base, names = random_model("minilm"), ("ours", "PEFT")
    cases = [("rank", rank, ("q", "v"), rank, 64) for rank in RANKS]
    cases += [("tokens a row", tokens, ("q", "v"), RANK, tokens) for tokens in (16, 32, 64, 128)]
    cases += [("adapted matrices", 6 * n, MATRICES[:n], RANK, 64) for n in (1, 2, 4, 6)]
    rows = []
    for axis, value, targets, rank, tokens in cases:
        spec = spec_of(targets=targets, rank=rank)
        calls = {n: step_call(n, copy.deepcopy(base), spec, 8, tokens) for n in names}
        seconds = interleaved(calls, max(5, rounds // 3))
        for name in names:
            mib, _ = alone(name, "minilm", "+".join(targets), rank, 8, tokens)
            row = {"axis": axis, "value": value, "what": name, "MiB": mib}
            ms = 1000 * seconds[name].quantile([0.25, 0.5, 0.75])
            rows.append({**row, "lower": ms[0.25], "ms": ms[0.5], "upper": ms[0.75]})
        print(f"growth: {axis} {value}: done", file=sys.stderr, flush=True)
    return pd.DataFrame(rows).assign(part="growth")


PARTS = {
    **{"layer": layers, "profile": profile, "step": steps, "dropout": dropout},
    **{"memory": memory, "recompute": recompute, "growth": growth},
}


def main() -> None:
    """Measure the asked parts and write a CSV of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    parser.add_argument("--alone", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.alone:
        print(*alone_here(*arguments.alone))
        return
    for part in arguments.parts:
        table = PARTS[part](arguments.rounds * (3 if part in ("layer", "profile") else 1))
        write_atomic(
            arguments.out / f"{part}.csv", lambda path, t=table: t.to_csv(path, index=False)
        )
        if part == "profile":
            write_text(arguments.out / f"{part}.md", markdown(table))
        print(table.round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
