"""Measure what an adapter costs at inference, and what switching tasks costs: ratios, interleaved.

A random BERT of all-MiniLM-L6-v2's shape (no download), q+v at rank 8, one thread, batch 8 x 64.
A ratio is to the base's time in the same round.

    python benchmarks/deploy.py [--rounds 40] [--out results/bench/deploy.csv]
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import transformers
from humanize import naturalsize

from common import interleaved, random_model, spec_of, spread
from loraudit.adapters import inject, peft_twin
from loraudit.adapters.base_model import reset_head
from loraudit.base.files import write_atomic, write_text
from loraudit.report.formatting import markdown
from loraudit.studies.spec import RunSpec
from loraudit.training.accounting import folder_bytes

ROWS, TOKENS, TASKS = 8, 64, 2


def trained(model: torch.nn.Module, spec: RunSpec) -> torch.nn.Module:
    """Put an adapter on, B random, as after training."""
    model = inject.apply(model, spec)
    reset_head(model, spec)
    for layer in inject.lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.01)
    return model.eval()


def variants(base: torch.nn.Module, spec: RunSpec) -> dict[str, torch.nn.Module]:
    """Make the models whose forward pass is timed."""
    merged = trained(copy.deepcopy(base), spec)
    twin_merged = peft_twin.apply(copy.deepcopy(base), spec)
    inject.merge(merged)
    twin_merged.merge_adapter()
    return {
        "base": base,
        "LoRA (ours), unmerged": trained(copy.deepcopy(base), spec),
        "LoRA (PEFT), unmerged": peft_twin.apply(copy.deepcopy(base), spec).eval(),
        "LoRA (ours), merged": merged,
        "LoRA (PEFT), merged": twin_merged.eval(),
    }


def ratios(seconds: pd.DataFrame, to: str) -> pd.DataFrame:
    """Return median, quartiles of each column's ratio to one of them, and its median time."""
    found = spread(seconds.div(seconds[to], axis=0))
    found.columns = ["what", "ratio: median", "lower quartile", "upper quartile"]
    return found.assign(**{"median, ms": 1000 * seconds.median().to_numpy()})


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("results/bench/deploy.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    base = random_model("minilm").eval()
    batch = {"input_ids": torch.randint(1000, 30000, (ROWS, TOKENS))}

    def call(model: torch.nn.Module) -> Callable[[], object]:
        def forward() -> object:
            with torch.inference_mode():
                return model(**batch).logits

        return forward

    calls = {name: call(model) for name, model in variants(base, spec_of(seed=0)).items()}
    forward = ratios(interleaved(calls, arguments.rounds), "base")
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root, f"adapter{seed}") for seed in range(TASKS)]
        for seed, folder in enumerate(folders):
            inject.export(
                trained(copy.deepcopy(base), spec_of(seed=seed)), spec_of(seed=seed), folder
            )
        checkpoint = Path(root, "checkpoint")
        base.save_pretrained(checkpoint)
        model = inject.load(copy.deepcopy(base), folders[0])
        turn = iter(range(10**9))
        load = transformers.BertForSequenceClassification.from_pretrained
        switches = {
            "load a full checkpoint": lambda: load(checkpoint),
            "switch the adapter": lambda: inject.switch(model, folders[next(turn) % TASKS]),
        }
        switching = ratios(interleaved(switches, arguments.rounds), "load a full checkpoint")
        switching["bytes"] = [folder_bytes(checkpoint), folder_bytes(folders[0])]
    table = pd.concat([forward, switching], ignore_index=True)
    shown = table.round(3).astype(object)
    shown["bytes"] = ["" if pd.isna(count) else naturalsize(count) for count in table.bytes]
    write_atomic(arguments.out, lambda path: table.to_csv(path, index=False))
    write_text(arguments.out.with_suffix(".md"), markdown(shown))
    print(markdown(shown))


if __name__ == "__main__":
    main()
