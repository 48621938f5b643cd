"""Say which layers of a model the targets `all` mean, from its entry and its config.json."""

from pathlib import Path

from loraudit.base.files import read_json
from loraudit.studies import paths
from loraudit.studies.entries import ModelEntry, layer_pattern
from loraudit.studies.names import targets_name
from loraudit.studies.study import Study

NUMBERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
SHARED = "num_hidden_groups"
"""Names that configs have for the number of layers, and of the blocks that layers share."""


def all_targets(study: Study) -> list[str]:
    """Return a sentence for each model of which a study adapts all matrices."""
    models = {
        run.spec.model.name: run.spec.model
        for run in study.runs
        if run.spec.adapter and targets_name(run.spec) == "all"
    }
    return [sentence(entry, paths.RESOURCES / "models" / name) for name, entry in models.items()]


def sentence(entry: ModelEntry, folder: Path) -> str:
    """Say which layers `all` means in one model, and how many if its config.json is in a folder."""
    layers = list(dict.fromkeys(map(layer_pattern, entry.modules.values())))
    names = ", ".join(entry.modules)
    config = folder / "config.json"
    found = read_json(config) if config.is_file() else {}
    keys = (SHARED,) if entry.shared_layers else NUMBERS
    blocks = next((found[key] for key in keys if isinstance(found.get(key), int)), None)
    count = f"{len(layers)} linear layers in each of its blocks"
    if blocks:
        most, each = ("at most ", "up to ") if entry.some_layers else ("", "")
        where = f"each of {blocks} blocks" if blocks > 1 else "its one block"
        count = f"{most}{len(layers) * blocks} linear layers, {each}{len(layers)} in {where}"
    shared = "; all its layers share one block, so its adapters too" if entry.shared_layers else ""
    return f"all of {entry.name} is {names}: {count} ({', '.join(layers)}){shared}"
