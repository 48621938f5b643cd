"""What an entry of models.yaml or tasks.yaml may say, before anything is loaded."""

from pathlib import Path

import pytest
import yaml

from loraudit.base.errors import UserError
from loraudit.base.yaml_file import read_yaml
from loraudit.studies.entries import ModelEntry, place_of
from loraudit.studies.entry_files import load_model, load_task
from loraudit.studies.values import validated

GIVEN = {
    "name": "mine",
    "source": {"folder": "x"},
    "modules": {"q": "layer.*.query", "v": "layer.*.value"},
    "head": ["classifier"],
}


def entry(**changes) -> ModelEntry:
    return validated(ModelEntry, {**GIVEN, **changes}, "model 'mine'")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"modules": {"q": "layer.0.query"}},
            r"modules: q = 'layer.0.query': one part .* to be \*",
        ),
        ({"modules": {"q": "query"}}, r"q = 'query': one part"),
        ({"modules": {"q": "group.*.layer.*.query"}}, "one part"),
        ({"modules": {"q": "layer*.query"}}, "one part"),
        ({"first_token": "layer.0.attention"}, "first_token = 'layer.0.attention': one part"),
        ({"modules": {"q": "a.*.b", "v": "a.*.b"}}, "modules: q and v are both 'a.*.b'"),
        ({"head": ["pooler", "pooler.dense"]}, "head: 'pooler.dense' lies in 'pooler'"),
        ({"head": ["classifier", "classifier"]}, "leave it out"),
    ],
)
def test_an_entry_whose_names_can_not_be_meant_is_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        entry(**changes)


WHEEL = {"wheel": "a==1", "sha256": "0" * 64, "path": "x"}
KINDS = "source = .*: a source has exactly one of the keys wheel, parts, folder, hub"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"hub": "owner/name", "revision": "main"}, "source.hub.revision = 'main': "),
        ({"wheel": "a==1", "path": "x"}, "key 'source.wheel.sha256' is missing"),
        ({"parts": [WHEEL, {**WHEEL, "sha256": "f"}], "sha256": "0" * 64, "path": "x"},
         r"source\.parts\.parts\.1\.sha256 = 'f': "),
        ({"parts": [WHEEL], "sha256": "0" * 64, "path": "x"},
         "source.parts.parts = .* at least 2 items"),
        ({"folder": "x", "hub": "owner/name"}, KINDS),
        ({"floder": "x"}, KINDS),
        ("x", KINDS),
    ],
)  # fmt: skip
def test_a_source_is_told_by_its_key_and_what_is_wrong_with_it_is_named(source, reason):
    with pytest.raises(UserError, match=f"^model 'mine': {reason}"):
        entry(source=source)


TASK = {
    "source": {"folder": "data"},
    "text": ["sentence"],
    "label": "label",
    "classes": ["no", "yes"],
    "metrics": ["accuracy"],
    "headline": "accuracy",
}


def written(folder: Path, table: dict) -> Path:
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(table))
    return path


@pytest.mark.parametrize("name", ["mine", "other", None])
def test_an_entrys_name_is_its_key(name, tmp_path):
    """Runs would be called by another task's or model's name."""
    own = {} if name is None else {"name": name}
    model = {**GIVEN, "name": name} if name else {k: v for k, v in GIVEN.items() if k != "name"}
    tasks = written(tmp_path, {"mine": {**TASK, **own}, "other": TASK})
    if name == "other":
        with pytest.raises(UserError, match="mine: name = 'other': an entry is called by its key"):
            load_task("mine", tasks)
    else:
        assert load_task("mine", tasks).name == "mine"
    models = written(tmp_path, {"models": {"mine": model}})
    if name == "other":
        with pytest.raises(UserError, match="mine: name = 'other': an entry is called by its key"):
            load_model("mine", models)
    else:
        assert load_model("mine", models).name == "mine"


@pytest.mark.parametrize("split", ["train", "validation", "selection", "extra"])
def test_a_further_split_can_not_be_called_as_one_that_is_there(split, tmp_path):
    path = written(tmp_path, {"mine": {**TASK, "also_validate": {split: "test"}}})
    if split == "extra":
        assert load_task("mine", path).also_validate == {"extra": "test"}
        return
    with pytest.raises(UserError, match=f"also_validate: .*'{split}'.* taken"):
        load_task("mine", path)


def test_every_pattern_that_is_accepted_has_a_layer_number():
    """Section 7 finds a layer by its number, so none may lack one."""
    for name in read_yaml("config/models.yaml")["models"]:
        modules = load_model(name).modules
        for matrix, pattern in modules.items():
            assert place_of(f"model.{pattern.replace('*', '11')}", modules) == (11, matrix)
    fixed = entry(modules={"q": "group.0.layer.*.query"}).modules
    assert place_of("group.0.layer.3.query", fixed) == (3, "q")
