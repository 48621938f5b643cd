"""What is proposed for a model by looking at it is what its family says."""

import pytest

from loraudit.adapters.base_layers import targets_of
from loraudit.base.errors import UserError
from loraudit.base.yaml_file import read_yaml
from loraudit.studies.entries import ModelEntry
from loraudit.tools.all_targets import sentence
from loraudit.tools.architecture import propose
from tiny import tiny_config, tiny_entry, tiny_model


@pytest.mark.parametrize("family", read_yaml("config/models.yaml")["families"])
def test_a_familys_matrices_and_head_are_found(family):
    """ModernBERT's pretrained dense layer stays out of the head, as the checkpoint has it."""
    entry, model = tiny_entry(family), tiny_model(family)
    kept = [name for name, _ in model.named_parameters() if name.startswith("head.")]
    found = propose(tiny_config(family), frozenset(kept))
    fields = {"modules": found.modules, "head": found.head, "output": found.output}
    made = ModelEntry(name="m", source={"folder": "x"}, **fields)
    wanted = targets_of(model, entry, tuple(entry.modules))
    assert targets_of(model, made, tuple(made.modules)) == wanted
    assert (made.head, made.output_layer, found.left_out) == (entry.head, entry.output_layer, ())


def test_a_layer_without_a_name_here_is_left_out(monkeypatch):
    def only_queries(pattern):
        return "q" if pattern.endswith("query") else None

    monkeypatch.setattr("loraudit.tools.architecture._matrix", only_queries)
    found = propose(tiny_config("bert"))
    assert set(found.modules) == {"q"} and len(found.left_out) == 5


def test_a_model_of_which_nothing_is_recognised_is_refused(monkeypatch):
    monkeypatch.setattr("loraudit.tools.architecture._matrix", lambda pattern: None)
    with pytest.raises(UserError, match=r"no matrix was recognised.*--module.*self\.query"):
        propose(tiny_config("bert"))


def test_the_layers_of_all_are_counted(tmp_path):
    assert "all of tiny is q, k, v, o, up, down: 6 linear layers in each of its blocks (enc" in (
        sentence(tiny_entry("bert"), tmp_path)
    )
    for family, said in (
        ("gpt2", "q, k, v, o, up, down: 8 linear layers, 4 in each of 2 blocks (h.*.attn.c_attn,"),
        ("phi3", "q, k, v, o, gate, up, down: 8 linear layers, 4 in each of 2 blocks"),
        ("albert", "6 linear layers, 6 in its one block"),
    ):
        tiny_config(family).save_pretrained(tmp_path)
        found = sentence(tiny_entry(family), tmp_path)
        assert said in found
        assert ("share one block, so its adapters too" in found) == (family == "albert")
