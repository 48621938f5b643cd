"""Readers of files that others may have made: whatever the bytes, a value or one clear sentence."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import peft
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraudit.adapters import inject
from loraudit.adapters.peft_folder import CONFIG, WEIGHTS
from loraudit.base.errors import UserError
from loraudit.studies.expand import load_study
from loraudit.studies.record import RunRecord, Train, read_record, seal, write_record
from loraudit.studies.spec import RunSpec, digest
from loraudit.studies.study import Study
from loraudit.studies.study_file import StudyFile
from loraudit.studies.values import validated
from mutations import EDITS, PLACE, mutated
from tiny import TRAIN, make_spec, tiny_model

pytestmark = pytest.mark.slow

EXAMPLES = settings.default.max_examples  # of the profile: `make test-long` takes many more
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NAMES = "lora peft mrpc snippets minilm q+v base switches source tensors run kaiming train label"
WORDS = st.sampled_from([*RunSpec.model_fields, *StudyFile.model_fields, *NAMES.split()])
OUTCOMES: dict[str, Counter] = defaultdict(Counter)
"""How often each reader has read and refused."""


@pytest.fixture(scope="module", autouse=True)
def both_outcomes_seen():
    yield
    for reader, count in OUTCOMES.items():
        assert min(count["read"], count["refused"]) >= EXAMPLES / 50, (reader, count)


def nested(scalars, keys):
    """Give lists and mappings of scalars, and of these."""
    return st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(WORDS | keys, inner, max_size=4)
        ),
        max_leaves=8,
    )


PLAIN = (
    WORDS | st.none() | st.booleans() | st.integers(-2, 2**64) | st.floats() | st.text(max_size=8)
)
JSON = nested(PLAIN, st.text(max_size=4))
DATED = PLAIN | st.dates() | st.binary(max_size=4)
VALUES = nested(DATED, DATED)


def reads(read, *arguments):
    """Return what a reader makes of its arguments, None for a refusal in one printable line."""
    try:
        found = read(*arguments)
    except UserError as error:
        assert str(error).isprintable()
        OUTCOMES[read.__name__]["refused"] += 1
        return None
    OUTCOMES[read.__name__]["read"] += 1
    return found


BLOCKS = st.fixed_dictionaries({}, optional={name: VALUES for name in RunSpec.model_fields})
TEXTS = [path.read_bytes() for path in sorted(Path("config/studies").glob("*.yaml"))]
STUDIES = (
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.builds(mutated, st.sampled_from(TEXTS), st.just(1.0) | PLACE, EDITS)
    | st.fixed_dictionaries(
        {}, optional={name: VALUES for name in StudyFile.model_fields} | {"grid": st.lists(BLOCKS)}
    ).map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "replace"))
)


@fuzzed
@given(STUDIES)
def test_any_study_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "study.yaml"
    path.write_bytes(content)
    found = reads(load_study, path)
    assert found is None or isinstance(found, Study)


FIELDS = make_spec().model_dump(mode="json")
GOOD = {"seed": st.integers(0, 9), "epochs": st.integers(1, 9), "learning_rate": st.floats(1e-6, 1)}
LIKELY = st.integers(1, 64) | st.floats(0, 1) | st.sampled_from(list(FIELDS.values())) | st.none()


@fuzzed
@given(
    st.dictionaries(st.sampled_from(sorted(FIELDS)), LIKELY | VALUES, max_size=2)
    | st.dictionaries(WORDS, VALUES, max_size=3)
    | st.fixed_dictionaries({}, optional=GOOD),
    st.just(()) | st.lists(st.sampled_from(sorted(FIELDS)), max_size=2),
)
def test_any_spec_is_read_or_refused(changes, dropped):
    fields = {key: value for key, value in {**FIELDS, **changes}.items() if key not in dropped}
    spec = reads(validated, RunSpec, fields, "spec")
    if spec is not None:
        again = validated(RunSpec, json.loads(spec.model_dump_json()), "spec")
        assert digest(again) == digest(spec)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Give a sealed record's path and bytes."""
    folder = tmp_path_factory.mktemp("record")
    (folder / "adapter").mkdir()
    spec = make_spec()
    made = RunRecord(spec=spec, spec_sha256=digest(spec), train=TRAIN, environment={"threads": 1})
    write_record(folder, made)
    return folder / "record.json", (folder / "record.json").read_bytes()


@fuzzed
@given(
    st.binary(max_size=99)
    | st.tuples(st.just(1.0) | PLACE, EDITS)
    | JSON
    | st.dictionaries(st.sampled_from(sorted(Train.model_fields)), LIKELY | JSON, max_size=2)
)
def test_any_record_is_the_one_written_or_refused(record, change):
    """A mapping is put among what training gave, under a seal that fits, as a forger would."""
    path, good = record
    forged = isinstance(change, dict) and change.keys() <= Train.model_fields.keys()
    if isinstance(change, bytes):
        path.write_bytes(change)
    elif isinstance(change, tuple):
        path.write_bytes(mutated(good, *change))
    elif forged:
        content = json.loads(good)
        content["train"] |= change
        content["record_sha256"] = seal(json.dumps(content))
        path.write_text(json.dumps(content))
    else:
        path.write_text(json.dumps(change))
    found = reads(read_record, path)
    path.write_bytes(good)
    assert found is None or forged or found == read_record(path)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Give an adapter's folder and the bytes of its two files."""
    folder, spec = tmp_path_factory.mktemp("adapter"), make_spec(rank=2)
    inject.export(inject.apply(tiny_model(), spec), spec, folder)
    return folder, {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}


@fuzzed
@given(
    st.sampled_from([CONFIG, WEIGHTS]),
    st.binary(max_size=99)
    | st.tuples(st.just(1.0) | PLACE, EDITS)
    | st.dictionaries(st.sampled_from(sorted(peft.LoraConfig().to_dict())), JSON, min_size=1),
)
def test_any_adapter_folder_is_read_or_refused(adapter, name, change):
    folder, good = adapter
    for file, content in good.items():
        (folder / file).write_bytes(content)
    if isinstance(change, dict):
        config = {**json.loads(good[CONFIG]), **change}
        (folder / CONFIG).write_text(json.dumps(config))
    else:
        content = change if isinstance(change, bytes) else mutated(good[name], *change)
        (folder / name).write_bytes(content)
    found = reads(inject.load, tiny_model(), folder)
    if found is not None:
        assert all(p.isfinite().all() for p in found.parameters())
