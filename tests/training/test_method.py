"""A method is one class and one entry: a test adds one, and it trains like those that are there."""

import pytest
from safetensors.torch import load_file

from loraudit.base.named_code import resolve
from loraudit.studies.expand import load_study
from loraudit.studies.methods import METHODS, MethodEntry
from loraudit.studies.record import read_record
from loraudit.studies.training_code import training_code
from loraudit.training import method as interface
from loraudit.training.run import train
from tiny import make_spec, tiny_model

ADDED = """
from loraudit.training.methods.baselines import HeadOnly

class Norms(HeadOnly):
    def trains(self, parameter):
        return "LayerNorm" in parameter
"""
ENTRY = MethodEntry(name="norms", label="LayerNorm", code="added_method:Norms", trains="weights")


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Add a method that trains the head and every LayerNorm."""
    (tmp_path / "added_method.py").write_text(ADDED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "norms", ENTRY)


def test_an_added_method_is_expanded_trained_recorded_and_saved(added, tiny, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("grid: [{method: [norms, head], seed: [0, 1]}]")
    study = load_study(file)
    assert [run.id.split("/")[2] for run in study.runs] == 2 * ["norms"] + 2 * ["head"]
    spec = make_spec(method="norms", epochs=1)
    train(spec, tiny / "tokens", tiny / "model", tmp_path / "run")
    parameters = read_record(tmp_path / "run/record.json").train.parameters
    norms = {n: p for n, p in tiny_model().named_parameters() if "LayerNorm" in n}
    assert parameters["base"] == sum(p.numel() for p in norms.values())
    assert parameters["adapter"] == 0
    saved = load_file(tmp_path / "run/adapter/norms.safetensors")
    assert {name for name in saved if "classifier" not in name} == set(norms)


@pytest.mark.parametrize(
    ("edit", "retrains"),
    [({"label": "other"}, False), ({"published_as": "lora"}, False), ({"saves": False}, True),
     ({"code": "loraudit.training.methods.baselines:HeadOnly"}, True)],
)  # fmt: skip
def test_an_edit_of_an_entry_retrains_its_runs_unless_it_is_only_shown(monkeypatch, edit, retrains):
    training_code.cache_clear()
    before = {name: training_code(name) for name in METHODS}
    monkeypatch.setitem(METHODS, "bitfit", METHODS["bitfit"].model_copy(update=edit))
    training_code.cache_clear()
    after = {name: training_code(name) for name in METHODS}
    training_code.cache_clear()
    changed = [name for name in METHODS if before[name] != after[name]]
    assert changed == (["bitfit"] if retrains else [])


@pytest.mark.parametrize("method", METHODS.values(), ids=str)
def test_every_entry_names_a_class_that_fulfils_the_interface(method):
    assert issubclass(resolve(method.code), interface.Method)
    assert method.settings is None or resolve(method.settings)().model_dump() is not None
    if method.twin:
        assert METHODS[method.twin].twin == method.name
    if method.published_as:
        assert method.published_as in METHODS
