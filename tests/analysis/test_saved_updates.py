"""Section 7's tables: what is read from adapters and checkpoints, and which rows are made."""

import json
import math

import pandas as pd
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from loraudit.adapters import inject
from loraudit.analysis.saved_updates import BaseWeights, read_updates, read_weights
from loraudit.analysis.section7 import (
    adapter_tables,
    amplification_rows,
    full_intruder_rows,
    intruder_rows,
    pair_rows,
    spectra_rows,
    study_tables,
    weight_rows,
)
from loraudit.analysis.subspace import expected_similarity, phi
from loraudit.base.errors import UserError
from loraudit.report import section7_figures
from loraudit.studies.names import run_id
from loraudit.studies.study import Run, Study
from tiny import make_spec, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

MODULES = tiny_entry().modules
OTHER = tiny_entry("distilbert").modules
PAIR = {"pair": "seeds", "first": "r2 s0", "second": "r2 s1"}


def save_adapter(folder, seed: int = 0, **changes):
    """Export a tiny in-house adapter whose B is random; returns its layers by name."""
    spec = make_spec(seed=seed, **{"rank": 2, "alpha": 3.0, **changes})
    model = inject.apply(tiny_model(), spec)
    layers = inject.lora_layers(model)
    torch.manual_seed(seed + 10)
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B)
    inject.export(model, spec, folder)
    return layers


@pytest.fixture
def adapter(tmp_path):
    save_adapter(tmp_path / "adapter")
    return read_updates(tmp_path / "adapter", MODULES)


@pytest.fixture
def base(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    return BaseWeights(tmp_path / "model", 8)


def dense(delta) -> torch.Tensor:
    return (delta.left * delta.values @ delta.right.mT).float()


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o", "up", "down")])
def test_every_layer_is_read_with_its_scaling(targets, tmp_path):
    layers = save_adapter(tmp_path, targets=targets)
    updates = read_updates(tmp_path, MODULES)
    assert list(updates) == [(layer, matrix) for layer in (0, 1) for matrix in targets]
    assert {update.name for update in updates.values()} == set(layers)
    for update in updates.values():
        wanted = layers[update.name].delta_weight()
        torch.testing.assert_close(dense(update.delta), wanted, atol=1e-5, rtol=1e-5)


def test_pefts_pattern_sets_the_rank_by_layer(tmp_path):
    patterns = {"rank_pattern": {"layer.0.attention.self.query": 3}}
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"], **patterns)
    twin = peft.get_peft_model(tiny_model(), config)
    for name, parameter in twin.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    twin.save_pretrained(tmp_path)
    updates = read_updates(tmp_path, MODULES)
    assert [len(update.delta.values) for update in updates.values()] == [3, 2, 2, 2]
    for update in updates.values():
        wanted = twin.base_model.model.get_submodule(update.name).get_delta_weight("default")
        torch.testing.assert_close(dense(update.delta), wanted, atol=1e-5, rtol=1e-5)


def test_of_several_families_the_first_that_has_all_layers_is_taken(tmp_path):
    save_adapter(tmp_path)
    assert set(read_updates(tmp_path, OTHER, MODULES)) == {(n, m) for n in (0, 1) for m in "qv"}
    with pytest.raises(UserError, match=r"query' is none of the model's \(legal: transformer\."):
        read_updates(tmp_path, OTHER)


@pytest.mark.parametrize("prefix", ["bert.", "", "backbone.bert."])
def test_the_weight_is_found_with_and_without_the_models_prefix(prefix, adapter, tmp_path):
    state = tiny_model().state_dict()
    renamed = {
        prefix + key.removeprefix("bert."): value
        for key, value in state.items()
        if key.startswith("bert.")
    }
    (tmp_path / "renamed").mkdir()
    save_file(renamed, tmp_path / "renamed/model.safetensors")
    found = BaseWeights(tmp_path / "renamed", 2)
    for update in adapter.values():
        assert torch.equal(found.weight(update), state[f"{update.name}.weight"])


def test_rows_hold_what_the_functions_say(adapter, base):
    spectra = pd.DataFrame(spectra_rows({"run": "x"}, adapter))
    table = pd.DataFrame(amplification_rows({"run": "x"}, adapter, base))
    assert len(spectra) == 8
    assert len(table) == 4
    for row in table.itertuples():
        update = adapter[row.layer, row.matrix]
        delta = update.b.double() @ update.a.double() * 1.5
        values = torch.linalg.svdvals(delta)[:2].tolist()
        mine = spectra[(spectra.layer == row.layer) & (spectra.matrix == row.matrix)]
        assert list(mine.singular_value) == pytest.approx(values)
        assert list(mine["index"]) == [1, 2]
        assert row.update_norm == pytest.approx(math.hypot(*values))
        assert row.stable_rank == pytest.approx((values[0] ** 2 + values[1] ** 2) / values[0] ** 2)
        weight = base.weight(update).double()
        left, _, right = torch.linalg.svd(delta)
        own = torch.linalg.norm(left[:, :2].mT @ weight @ right[:2].mT).item()
        assert row.projected_update == pytest.approx(own)
        assert row.amplification == pytest.approx(row.update_norm / own)
        largest = torch.linalg.svdvals(weight)[:2].norm().item()
        assert row.projected_weight == pytest.approx(largest)


@pytest.mark.parametrize(("side", "factor"), [("right", "a"), ("left", "b")])
def test_pairs_compare_one_factor_on_one_side(side, factor, adapter, tmp_path):
    save_adapter(tmp_path / "other", seed=1, rank=5)
    other = read_updates(tmp_path / "other", MODULES)
    rows = pd.DataFrame(pair_rows(PAIR, adapter, other, side, 4))
    assert rows.groupby(["matrix", "layer", "control"]).size().to_dict() == {
        (matrix, layer, control): 8
        for matrix in "qv"
        for layer, control in ((0, False), (0, True), (1, False))
    }
    for (layer, matrix), part in rows[~rows.control].groupby(["layer", "matrix"]):
        one, two = (getattr(side[layer, matrix], factor) for side in (adapter, other))
        wanted = phi(one, two, side)[:2, :4].flatten().tolist()
        assert part.phi.tolist() == pytest.approx(wanted)
    again = pd.DataFrame(pair_rows(PAIR, adapter, other, side, 4))
    pd.testing.assert_frame_equal(rows, again)


def test_the_control_is_of_the_size_that_chance_gives(adapter):
    draws = [
        row["phi"]
        for number in range(100)
        for row in pair_rows({"pair": f"draw {number}"}, adapter, adapter, "right", 2)
        if row["control"] and row["i"] == row["j"] == 2
    ]
    assert sum(draws) / len(draws) == pytest.approx(expected_similarity(2, 2, 16), rel=0.15)


def test_directions_of_the_update_beside_the_weights(adapter, base):
    rows = pd.DataFrame(weight_rows({"pair": "weights"}, adapter, base, "left", 8))
    assert set(rows.i) == {1, 2}
    assert set(rows.j) == set(range(1, 9))  # a tenth of 16 is less than 8
    row = rows[~rows.control].iloc[-1]
    update = adapter[row.layer, row.matrix]
    delta = update.b.double() @ update.a.double()
    grid = phi(delta, base.weight(update), "left")
    assert row.phi == pytest.approx(grid[row.i - 1, row.j - 1].item())


def test_an_adapter_that_did_not_move_has_no_directions(tmp_path, base):
    spec = make_spec(rank=2)
    inject.export(inject.apply(tiny_model(), spec), spec, tmp_path / "start")
    updates = read_updates(tmp_path / "start", MODULES)
    table = pd.DataFrame(amplification_rows({}, updates, base))
    assert set(table.update_norm) == {0}
    assert table.stable_rank.isna().all()
    assert not list(weight_rows({"pair": "weights"}, updates, base, "right", 8))
    assert not list(pair_rows(PAIR, updates, updates, "right", 8))
    tables = adapter_tables(tmp_path / "start", tmp_path / "model", [MODULES])
    for draw in (section7_figures.stable_rank, section7_figures.amplification):
        assert len(draw(tables["amplification"]).axes) == 2
    assert len(section7_figures.spectra(tables["spectra"]).axes) == 3
    (text,) = (
        section7_figures.subspaces(section7_figures.pair_rows(tables["subspaces"], "weights"))
        .axes[0]
        .texts
    )
    assert "no two adapters" in text.get_text()


def test_an_adapter_alone_has_all_tables(tmp_path, base):
    save_adapter(tmp_path / "mine")
    tables = adapter_tables(tmp_path / "mine", tmp_path / "model", [MODULES])
    assert {name: len(table) for name, table in tables.items()} == {
        "spectra": 8,
        "amplification": 4,
        "intruders": 4,
        "subspaces": 2 * (2 + 1) * 16,
    }
    assert set(tables["spectra"].task) == {"mine"}
    assert set(tables["subspaces"].pair) == {"weights"}
    with pytest.raises(UserError, match=r"most: 0 \(legal: 1 or more\)"):
        adapter_tables(tmp_path / "mine", tmp_path / "model", [MODULES], most=0)


def _without(name: str):
    def change(state, config):
        for key in [key for key in state if name in key]:
            del state[key]

    return change


def _first(name: str, new: torch.Tensor | None = None, **setting):
    def change(state, config):
        config.update(setting)
        if new is not None:
            state[next(key for key in state if name in key)] = new

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("lora_"), "no lora_A and lora_B"),
        (_without("layer.0.attention.self.query.lora_B"), "query. has no lora_B"),
        (_first("", r=3), "query: rank 2, the config says 3"),
        (_first("lora_B", torch.full((16, 2), math.nan)), "has NaN or infinite values"),
        (_first("", use_dora=True), "use_dora is True: not plain LoRA"),
        (_first("", alpha_pattern={"query": -7}), "alpha_pattern 'query' is -7 .legal: above 0"),
    ],
)
def test_a_broken_adapter_is_refused_with_the_reason(change, message, tmp_path):
    save_adapter(tmp_path)
    weights, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    state, config = load_file(weights), json.loads(settings.read_text())
    change(state, config)
    save_file(state, weights)
    settings.write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_updates(tmp_path, MODULES)


def test_missing_or_unreadable_files_are_named(adapter, tmp_path):
    with pytest.raises(UserError, match=r"no adapter_config.json"):
        read_updates(tmp_path, MODULES)
    with pytest.raises(UserError, match=r"no model here \(model.safetensors is missing\)"):
        BaseWeights(tmp_path, 2)
    (tmp_path / "model.safetensors").write_text("torn")
    with pytest.raises(UserError, match=r"model.safetensors: not a checkpoint"):
        BaseWeights(tmp_path, 2)
    (tmp_path / "adapter/adapter_model.safetensors").write_text("torn")
    with pytest.raises(UserError, match=r"adapter_model.safetensors: not a whole safetensors file"):
        read_updates(tmp_path / "adapter", MODULES)


def test_a_checkpoint_of_another_model_is_refused(adapter, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    update = adapter[0, "q"]
    with pytest.raises(UserError, match=r"expected one weight for .*query.weight', found none"):
        BaseWeights(tmp_path, 2).weight(update)
    save_file({f"{update.name}.weight": torch.zeros(4, 16)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"has shape \(4, 16\), the adapter \(16, 16\)"):
        BaseWeights(tmp_path, 2).weight(update)


def test_a_study_of_two_ranks_and_seeds_has_every_kind_of_pair(tmp_path):
    made = []
    for rank in (1, 4):
        for seed in (0, 1):
            spec = make_spec(seed=seed, rank=rank, alpha=3.0)
            made.append(Run(id=run_id(spec), label="", spec=spec))
            save_adapter(tmp_path / "runs" / made[-1].id / "adapter", seed, rank=rank)
    tiny_model().save_pretrained(tmp_path / "models/tiny")
    study = Study(name="s", question="q", runs=tuple(made))
    tables = study_tables(study, tmp_path, tmp_path / "models")
    assert len(tables["spectra"]) == 4 * (1 + 1 + 4 + 4)
    assert len(tables["amplification"]) == 4 * 4
    pairs = tables["subspaces"]
    sides = pairs[["pair", "first", "second"]].drop_duplicates().itertuples(index=False, name=None)
    assert list(sides) == [
        ("ranks", "r1 s1", "r4 s0"),
        ("ranks", "r1 s0", "r4 s1"),
        ("seeds", "r4 s0", "r4 s1"),
        ("weights", "r4 s0", "W"),
    ]
    small, large = (
        read_updates(tmp_path / "runs" / run.id / "adapter", MODULES) for run in (made[1], made[2])
    )
    where = "pair == 'ranks' and second == 'r4 s0' and layer == 1 and matrix == 'q'"
    grid = phi(small[1, "q"].a, large[1, "q"].a)
    assert pairs.query(where).phi.tolist() == pytest.approx(grid[0].tolist())
    left = study_tables(study, tmp_path, tmp_path / "models", "left", 2)["subspaces"]
    assert left.i.max() == left.j.max() == 2
    grid = phi(small[1, "q"].b, large[1, "q"].b, "left")
    assert left.query(where).phi.tolist() == pytest.approx(grid[0, :2].tolist())
    for pair in ("ranks", "seeds", "weights"):
        shown = section7_figures.subspaces(section7_figures.pair_rows(pairs, pair))
        assert len(shown.axes) == 2  # over j, and by layer; a line per matrix in both


def test_three_seeds_of_two_ranks_have_phi_of_all_pairs_of_seeds(tmp_path):
    made = []
    for rank in (1, 4):
        for seed in (0, 1, 2):
            spec = make_spec(seed=seed, rank=rank, alpha=3.0)
            made.append(Run(id=run_id(spec), label="", spec=spec))
            save_adapter(tmp_path / "runs" / made[-1].id / "adapter", seed, rank=rank)
    tiny_model().save_pretrained(tmp_path / "models/tiny")
    study = Study(name="s", question="q", runs=tuple(made))
    pairs = study_tables(study, tmp_path, tmp_path / "models")["subspaces"]
    every = pairs[pairs.pair == "ranks by seed"]
    assert len(every) == 6 * 4
    same = ["first", "second", "layer", "matrix"]
    figure = pairs.query("pair == 'ranks' and i == 1 and j == 1 and not control")
    both = figure.merge(every, on=same, suffixes=("", "_by_seed"))
    assert len(both) == 3 * 4 and both.phi_by_seed.tolist() == pytest.approx(both.phi.tolist())


def test_intruders_are_counted_on_w_plus_the_saved_update(adapter, base):
    rows = list(intruder_rows({"run": "a"}, adapter, base))
    assert [(row["layer"], row["matrix"]) for row in rows] == list(adapter)
    for row, update in zip(rows, adapter.values(), strict=True):
        weight = base.weight(update).double()
        trained = torch.linalg.svd(weight + dense(update.delta).double()).U[:, : row["of"]]
        cosines = (torch.linalg.svd(weight).U.mT @ trained).abs().amax(0)
        assert row["intruders"] == int((cosines < 0.5).sum())
        assert row["cosine"] == pytest.approx(cosines.min().item(), abs=1e-4)


def test_an_adapter_that_did_not_move_has_no_intruders(base, tmp_path):
    spec = make_spec(rank=2)
    inject.export(inject.apply(tiny_model(), spec), spec, tmp_path / "still")
    still = read_updates(tmp_path / "still", MODULES)
    assert {row["intruders"] for row in intruder_rows({}, still, base)} == {0}


def test_the_weights_of_full_fine_tuning_are_measured_where_they_were_kept(base, tmp_path):
    """A column of ones, large enough, is an intruder of the one matrix that it was planted in."""
    model = tiny_model()
    planted = model.bert.encoder.layer[1].attention.self.value.weight.data
    left = torch.linalg.svd(planted).U
    direction = left.sum(1) / len(left) ** 0.5  # equally like all directions of W
    planted += 100 * torch.outer(direction, torch.ones(planted.shape[1]))
    (tmp_path / "adapter").mkdir()
    save_file(dict(model.state_dict()), tmp_path / "adapter/full_saved.safetensors")
    weights = list(read_weights(tmp_path / "adapter", MODULES, base))
    assert {place for place, _, _ in weights} == {(n, m) for n in (0, 1) for m in MODULES}
    counts = {
        (row["layer"], row["matrix"]): row["intruders"]
        for row in full_intruder_rows({}, weights, base)
    }
    assert counts[1, "v"] >= 1
    assert {count for place, count in counts.items() if place != (1, "v")} == {0}
    assert list(counts) == [(n, m) for n in (0, 1) for m in MODULES]


def test_full_fine_tuning_without_its_weights_is_told(base, tmp_path):
    with pytest.raises(UserError, match=r"full_saved\.safetensors is missing"):
        list(read_weights(tmp_path, MODULES, base))
