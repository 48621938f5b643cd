"""Adapters of loralib: equal outputs after import, and a clear refusal of everything else."""

import io
import json
import pickle
import re
import zipfile
from collections import OrderedDict

import loralib
import peft
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraudit.adapters import inject
from loraudit.adapters.loralib_file import import_file, read_bin, recognise, skeleton, unwrapped
from loraudit.analysis.saved_updates import read_updates
from loraudit.base.errors import UserError
from loraudit.studies.entry_files import load_model
from mutations import EDITS, PLACE, mutated
from tiny import LFS_POINTER, MILD, tiny_config, tiny_entry, tiny_model

pytestmark = pytest.mark.numerics

ALPHA, RANK = 16, 4
QUERY = "roberta.encoder.layer.0.attention.self.query"


HEADS = ("classifier", "pooler", "pre_classifier", "score")


def loralib_model(family: str = "roberta", matrices=("query", "value"), classes: int = 3):
    """Put loralib's own layers in a tiny model, as microsoft/LoRA's examples do.

    B and the head hold random values, as after training.
    """
    model = tiny_model(family, classes)
    for name, layer in list(model.named_modules()):
        if re.search(rf"(layer|h)\.\d+\..*\b({'|'.join(matrices)})$", name):
            turned = family == "gpt2"  # Conv1D holds its weight as (d_in, d_out)
            sizes = layer.weight.shape if turned else layer.weight.shape[::-1]
            options = {"r": RANK, "lora_alpha": ALPHA, "merge_weights": False}
            theirs = loralib.Linear(*sizes, fan_in_fan_out=turned, **options)
            theirs.load_state_dict(layer.state_dict(), strict=False)
            torch.nn.init.normal_(theirs.lora_B, std=MILD)
            model.set_submodule(name, theirs)
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if name.startswith(HEADS):
            torch.nn.init.normal_(parameter, std=MILD)
    return model.eval()


def saved_names(model) -> OrderedDict:
    """Return what the released checkpoints hold: A, B and the head."""
    return OrderedDict(
        (name, tensor)
        for name, tensor in model.state_dict().items()
        if "lora_" in name or name.startswith(HEADS)
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_config("roberta").save_pretrained(folder)
    return folder


@pytest.fixture
def good():
    return saved_names(loralib_model())


def imported(state, base, tmp_path, **changes):
    file = tmp_path / "adapter.bin"
    torch.save(state, file)
    options = {"alpha": ALPHA, "entry": tiny_entry("roberta"), "base": base, **changes}
    return import_file(file, out=tmp_path / "out", **options)


def refused(content, base, tmp_path, **changes) -> str:
    """Import a state dict, or a file of these bytes; returns the error's text."""
    file = tmp_path / "adapter.bin"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    options = {"alpha": ALPHA, "entry": tiny_entry("roberta"), "base": base, **changes}
    with pytest.raises(UserError) as caught:
        import_file(file, out=tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.bin"]  # nothing half-written
    assert str(caught.value).isprintable()
    return str(caught.value)


def saved(state, tmp_path, **options) -> bytes:
    torch.save(state, tmp_path / "source.bin", **options)
    data = (tmp_path / "source.bin").read_bytes()
    (tmp_path / "source.bin").unlink()
    return data


@pytest.mark.parametrize(
    ("family", "matrices"),
    [
        ("roberta", ("query", "value")),
        ("bert", ("query", "key", "value", "dense")),
        ("deberta-v2", ("query_proj", "value_proj")),
        ("mpnet", ("attn.q", "attn.v", "attn.o", "dense")),
        ("distilbert", ("q_lin", "v_lin", "lin1", "lin2")),
        ("gpt2", ("c_fc", "c_proj")),
    ],
)
def test_peft_and_we_give_loralibs_outputs(family, matrices, batch, tmp_path):
    source = loralib_model(family, matrices)
    expected = source(**batch).logits
    (tmp_path / "base").mkdir()
    tiny_config(family).save_pretrained(tmp_path / "base")
    found = imported(saved_names(source), tmp_path / "base", tmp_path, entry=tiny_entry(family))
    theirs = peft.PeftModel.from_pretrained(tiny_model(family, 3), tmp_path / "out").eval()
    ours = inject.load(tiny_model(family, 3), tmp_path / "out").eval()
    assert torch.allclose(theirs(**batch).logits, expected, atol=1e-5)
    assert torch.allclose(ours(**batch).logits, expected, atol=1e-5)
    assert not torch.allclose(tiny_model(family, 3).eval()(**batch).logits, expected, atol=1e-2)
    assert set(found.ranks.values()) == {RANK}


def test_alpha_decides_the_outputs(good, base, batch, tmp_path):
    expected = loralib_model()(**batch).logits
    imported(good, base, tmp_path, alpha=8)
    ours = inject.load(tiny_model("roberta", 3), tmp_path / "out").eval()
    assert not torch.allclose(ours(**batch).logits, expected, atol=1e-2)


@pytest.mark.parametrize("alpha", [None, 0, -1.0, float("nan"), float("inf")])
def test_alpha_is_demanded(good, base, tmp_path, alpha):
    message = refused(good, base, tmp_path, alpha=alpha)
    assert "66.55" in message if alpha is None else "above 0" in message


def test_it_says_what_it_found(good, base, tmp_path):
    found = imported(good, base, tmp_path)
    assert dict(found.rows()) == {
        "layers": "2",
        "adapted matrices": "4",
        "targets": "q+v",
        "rank": "4",
        "adapter parameters": f"{4 * 2 * 4 * 16:,}",
        "head parameters": f"{16 * 16 + 16 + 3 * 16 + 3:,}",
        "file bytes": f"{(tmp_path / 'adapter.bin').stat().st_size:,}",
    }


def test_a_file_of_the_published_mnli_adapters_shape(tmp_path):
    """52 tensors: 294,912 adapter and 592,899 head parameters (roberta_base_lora_mnli.bin)."""
    (tmp_path / "base").mkdir()
    transformers.RobertaConfig(vocab_size=50265).save_pretrained(tmp_path / "base")
    state = {
        f"roberta.encoder.layer.{layer}.attention.self.{matrix}.{part}": torch.randn(shape)
        for layer in range(12)
        for matrix in ("query", "value")
        for part, shape in (("lora_A", (8, 768)), ("lora_B", (768, 8)))
    }
    for name, rows in (("dense", 768), ("out_proj", 3)):
        state[f"classifier.{name}.weight"] = torch.randn(rows, 768)
        state[f"classifier.{name}.bias"] = torch.randn(rows)
    found = imported(state, tmp_path / "base", tmp_path, entry=load_model("roberta-base"))
    rows = dict(found.rows())
    assert (len(state), rows["layers"], rows["targets"]) == (52, "12", "q+v")
    assert (rows["adapter parameters"], rows["head parameters"]) == ("294,912", "592,899")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "FacebookAI/roberta-base"
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (8, 16, ["classifier"])


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
@pytest.mark.parametrize("body", ["roberta.", "", "bert.", "my.transformer."])
def test_prefixes_do_not_matter(good, base, tmp_path, prefix, body):
    for folder in ("plain", "named"):
        (tmp_path / folder).mkdir()
    plain = imported(good, base, tmp_path / "plain").state
    named = {prefix + name.replace("roberta.", body): tensor for name, tensor in good.items()}
    other = imported(named, base, tmp_path / "named").state
    assert plain.keys() == other.keys()


def test_without_a_head_the_adapter_alone_is_imported(good, base, batch, tmp_path):
    """loralib.lora_state_dict drops the head."""
    found = imported(loralib.lora_state_dict(loralib_model()), base, tmp_path)
    assert not found.head
    assert dict(found.rows())["head parameters"].startswith("0 (no head")
    theirs = peft.PeftModel.from_pretrained(tiny_model("roberta", 3), tmp_path / "out").eval()
    ours = inject.load(tiny_model("roberta", 3), tmp_path / "out").eval()
    assert torch.allclose(theirs(**batch).logits, ours(**batch).logits, atol=1e-5)


def test_ranks_may_differ_by_layer(good, base, batch, tmp_path):
    torch.manual_seed(0)
    good[f"{QUERY}.lora_A"], good[f"{QUERY}.lora_B"] = torch.randn(2, 16), torch.randn(16, 2)
    assert dict(imported(good, base, tmp_path).rows())["rank"] == "2, 4"
    theirs = peft.PeftModel.from_pretrained(tiny_model("roberta", 3), tmp_path / "out").eval()
    ours = inject.load(tiny_model("roberta", 3), tmp_path / "out").eval()
    assert torch.allclose(theirs(**batch).logits, ours(**batch).logits, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_read(good, base, tmp_path, dtype):
    assert imported({k: v.to(dtype) for k, v in good.items()}, base, tmp_path).rank == RANK


def test_the_format_before_torch_1_6_is_read(good, base, tmp_path):
    file = tmp_path / "adapter.bin"
    torch.save(good, file, _use_new_zipfile_serialization=False)
    found = import_file(file, ALPHA, tiny_entry("roberta"), base, tmp_path / "out")
    assert found.rank == RANK


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["value", "whole", "bare pickle"])
def test_code_is_refused_and_not_run(good, base, tmp_path, zipped, place):
    payload = Payload(tmp_path / "ran")
    if place == "bare pickle":
        data = pickle.dumps(payload, protocol=2)
    else:
        content = payload if place == "whole" else {**good, "classifier.dense.extra": payload}
        data = saved(content, tmp_path, _use_new_zipfile_serialization=zipped)
    assert "refused, nothing was run: it asks for code" in refused(data, base, tmp_path)
    pickle.loads(pickle.dumps(payload)).close()  # the payload does work where pickles are run
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files_are_refused(good, base, tmp_path, share, zipped):
    data = saved(good, tmp_path, _use_new_zipfile_serialization=zipped)
    message = refused(data[: int(len(data) * share)], base, tmp_path)
    assert "truncated or damaged" in message or "not a whole file of torch.save" in message


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(print),
        b"hello",
        b"PK\x03\x04",
        b"\x80\x02}q\x00.",
        b"\x00" * 5000,
    ],
)
def test_other_files_are_refused(base, tmp_path, data):
    refused(data, base, tmp_path)


def test_a_file_of_more_layers_than_the_model_has_is_told_how_many(good, tmp_path_factory):
    base, out = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("out")
    config = tiny_config("roberta")
    config.num_hidden_layers = 6
    config.save_pretrained(base)
    state = {
        name.replace("layer.0", f"layer.{number}"): tensor.clone()
        for name, tensor in good.items()
        for number in (range(12) if "layer.0" in name else (0,))
    }
    message = refused(state, base, out)
    assert "layer.6.attention.self.query.lora_A'" in message
    assert message.endswith("and 21 more: this model has 6 layers")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LFS_POINTER, "is a Git LFS pointer, which only names the file's contents; `git lfs pull`"),
        (b"\n\n<!DOCTYPE html>\n<html lang=en>", "is an HTML page, as is saved from a link"),
        (b"<html>\n</html>", "is an HTML page"),
    ],
)
def test_what_was_fetched_in_place_of_the_file_is_named(base, tmp_path, data, message):
    assert message in refused(data, base, tmp_path)


def test_empty_and_absent_files_are_refused(base, tmp_path):
    assert "is empty" in refused(b"", base, tmp_path)
    with pytest.raises(UserError, match="no file"):
        read_bin(tmp_path / "absent.bin")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{QUERY}.lora_A": torch.zeros(3, 16)}, "lora_A (3, 16) and lora_B (16, 4)"),
        ({f"{QUERY}.lora_A": torch.zeros(4, 17)}, "is (4, 17), this model's is (4, 16)"),
        ({f"{QUERY}.lora_B": torch.zeros(32, 4)}, "is (32, 4), this model's is (16, 4)"),
        ({f"{QUERY}.lora_A": torch.zeros(8, 16)}, "looks like loralib's MergedLinear (2 fused"),
        ({f"{QUERY}.lora_A": torch.full((4, 16), float("nan"))}, "NaN or infinite"),
        ({f"{QUERY}.lora_B": torch.full((16, 4), -float("inf"))}, "NaN or infinite"),
        ({"classifier.dense.bias": torch.full((16,), float("nan"))}, "NaN or infinite"),
        ({f"{QUERY}.lora_B": None}, f"{QUERY!r} has no lora_B"),
        ({f"{QUERY}.lora_A": None}, f"{QUERY!r} has no lora_A"),
        (
            {f"{QUERY}.lora_A": None, f"{QUERY}.lora_B": None},
            f"nothing for {QUERY!r}, which this model has",
        ),
        ({"classifier.dense.bias": None}, "nothing for 'classifier.dense.bias'"),
        ({"classifier.dense.weight": torch.zeros(16, 8)}, "this model's is (16, 16)"),
        ({"classifier.out_proj.weight": torch.zeros(0, 16)}, "'classifier.out_proj.weight' is"),
        ({"classifier.out_proj.weight": torch.tensor(1.0)}, "'classifier.out_proj.weight' is"),
        ({f"{QUERY}.bias": torch.zeros(16)}, f"{QUERY + '.bias'!r}: not known (legal: lora_A"),
        ({"optimizer\n\x1b[2J": torch.zeros(1)}, "not known"),
        (
            {QUERY.replace("r.0", "r.9") + ".lora_A": torch.zeros(4, 16)},
            f"{QUERY.replace('r.0', 'r.9') + '.lora_A'!r}: this model has 2 layers",
        ),
        ({"epoch": 3}, "'epoch' is a int"),
        ({"state": {"a": torch.zeros(1)}}, "'state' is a dict"),
        (
            {f"classifier.dense.lora_{part}": torch.zeros(16, 16) for part in "AB"},
            "'classifier.dense.lora_A', 'classifier.dense.lora_B': not known",
        ),
        ({torch.zeros(9, 9): torch.zeros(1)}, "is a Tensor (legal: names"),
        ({3: torch.zeros(1)}, "3 is a Tensor (legal: names"),
        ({f"{QUERY}.lora_A": torch.zeros(4, 16, dtype=torch.int64)}, "is of torch.int64"),
        ({f"{QUERY}.lora_A": torch.zeros(4, 16, dtype=torch.complex64)}, "is of torch.complex64"),
        ({f"{QUERY}.lora_A": torch.zeros(4, 16).to_sparse()}, "not a plain tensor"),
        ({f"{QUERY}.lora_A": torch.zeros(4, 16, device="meta")}, "not a plain tensor"),
        ({f"{QUERY}.lora_A": torch.zeros(1).expand(4, 10**12)}, "bytes of tensors in a file of"),
        (
            {f"b.{QUERY.partition('.')[2]}.lora_A".replace("r.0", "r.1"): torch.zeros(4, 16)},
            "layers of several models",
        ),
    ],
)
def test_contents_that_do_not_fit_are_named(good, base, tmp_path, changes, message):
    state = {name: tensor for name, tensor in {**good, **changes}.items() if tensor is not None}
    assert message in refused(state, base, tmp_path)


@pytest.mark.parametrize("content", [[], {}, torch.zeros(3), [torch.zeros(3)], "text"])
def test_what_is_no_state_dict_is_refused(base, tmp_path, content):
    assert "not a state dict" in refused(content, base, tmp_path)


def test_a_merged_linear_file_is_refused_where_the_layer_is_one_matrix(good, base, tmp_path):
    layer = loralib.MergedLinear(16, 48, r=4, enable_lora=[True, False, True])
    state = {f"{QUERY}.{n}": t for n, t in layer.state_dict().items() if "lora" in n}
    message = refused({**good, **state}, base, tmp_path)
    assert "MergedLinear (2 fused matrices), but this layer of the model holds one" in message


def merged_gpt2(*enabled: bool, wrap: str = ""):
    """Put MergedLinear into a tiny GPT-2 as microsoft/LoRA's NLG example does; return its file."""
    model = tiny_model("gpt2", 3)
    for block in model.transformer.h:
        options = {"r": RANK, "lora_alpha": ALPHA, "merge_weights": False, "fan_in_fan_out": True}
        layer = loralib.MergedLinear(16, 48, enable_lora=list(enabled), **options)
        layer.load_state_dict(block.attn.c_attn.state_dict(), strict=False)
        torch.nn.init.normal_(layer.lora_B, std=MILD)
        block.attn.c_attn = layer
    torch.nn.init.normal_(model.score.weight, std=MILD)
    return model.eval(), OrderedDict((wrap + n, t) for n, t in saved_names(model).items())


@pytest.fixture
def gpt2_base(tmp_path):
    (tmp_path / "base").mkdir()
    tiny_config("gpt2").save_pretrained(tmp_path / "base")
    return {"base": tmp_path / "base", "entry": tiny_entry("gpt2")}


@pytest.mark.parametrize(
    ("enabled", "fused", "targets"),
    [
        ((True, False, True), ("q", "v"), ("q", "v")),
        ((False, True, False), ("k",), ("k",)),
        ((True, True, True), (), ("q", "k", "v")),
    ],
)
def test_merged_linear_gives_its_outputs_in_peft_and_here(
    enabled, fused, targets, batch, gpt2_base, tmp_path
):
    source, state = merged_gpt2(*enabled, wrap="module.")
    expected = source(**batch).logits
    found = imported(state, tmp_path=tmp_path, fused=fused, **gpt2_base)
    assert found.targets == targets and set(found.ranks.values()) == {RANK}
    assert dict(found.rows())["layers"] == "2"
    counted = 2 * len(targets) * RANK * (16 + 16)
    assert dict(found.rows())["adapter parameters"] == f"{counted:,}"
    theirs = peft.PeftModel.from_pretrained(tiny_model("gpt2", 3), tmp_path / "out").eval()
    ours = inject.load(tiny_model("gpt2", 3), tmp_path / "out").eval()
    assert torch.allclose(theirs(**batch).logits, expected, atol=1e-5)
    assert torch.allclose(ours(**batch).logits, expected, atol=1e-5)
    updates = read_updates(tmp_path / "out", gpt2_base["entry"].modules)
    assert list(updates) == [(n, name) for n in (0, 1) for name in targets]


def test_a_whole_fused_layer_with_one_adapter_is_imported(batch, gpt2_base, tmp_path):
    """loralib.Linear on the layer: one A for all three matrices."""
    source = loralib_model("gpt2", ("c_attn", "c_fc"))
    found = imported(saved_names(source), tmp_path=tmp_path, **gpt2_base)
    assert found.targets == ("q", "k", "v", "up")
    ours = inject.load(tiny_model("gpt2", 3), tmp_path / "out").eval()
    assert torch.allclose(ours(**batch).logits, source(**batch).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("enabled", "fused", "reason"),
    [
        ((True, False, True), (), r"entry names q, k, v, and .*give --fused"),
        ((True, False, True), ("q",), r"hold 2 matrices of 32 outputs together, and q of this"),
        ((True, True, True), ("q", "v"), "hold 3 matrices of 48 outputs together, and q[+]v of"),
        ((True, False, True), ("o",), "and none of its matrices of this model have 0"),
    ],
)
def test_which_matrices_have_adapters_is_asked_and_checked(
    enabled, fused, reason, gpt2_base, tmp_path
):
    torch.save(merged_gpt2(*enabled)[1], tmp_path / "adapter.bin")
    with pytest.raises(UserError, match=reason):
        import_file(tmp_path / "adapter.bin", ALPHA, out=tmp_path / "out", fused=fused, **gpt2_base)
    assert not (tmp_path / "out").exists()


def cut_otherwise(entry, *shares: int, matrices=("q", "k", "v")):
    """Return GPT-2's entry with other shares of its fused layer, or without some of its parts."""
    modules = dict(entry.modules)
    for number, name in enumerate(("q", "k", "v")):
        modules[name] = modules[name].model_copy(update={"part": number, "of": shares})
        if name not in matrices:
            del modules[name]
    return entry.model_copy(update={"modules": modules})


def test_unequal_parts_are_not_taken_for_loralibs_equal_ones(gpt2_base, tmp_path):
    """Grouped queries: the rows of the file's B are equal parts, whatever the model's are."""
    torch.save(merged_gpt2(True, True, True)[1], tmp_path / "adapter.bin")
    gpt2_base["entry"] = cut_otherwise(gpt2_base["entry"], 4, 1, 1)
    with pytest.raises(UserError, match=r"equal parts, .*\(q 32, k 8, v 8\)"):
        import_file(tmp_path / "adapter.bin", ALPHA, out=tmp_path / "out", **gpt2_base)


def test_an_entry_of_some_parts_does_not_say_which_the_file_has(gpt2_base, tmp_path):
    torch.save(merged_gpt2(True, True, False)[1], tmp_path / "adapter.bin")
    gpt2_base["entry"] = cut_otherwise(gpt2_base["entry"], 1, 1, 1, matrices=("q", "v"))
    with pytest.raises(UserError, match=r"entry names q, v, and .*give --fused"):
        import_file(tmp_path / "adapter.bin", ALPHA, out=tmp_path / "out", **gpt2_base)


def rezipped(data: bytes, edit, compression=zipfile.ZIP_STORED) -> bytes:
    """Write a file of torch.save anew, with its pickle edited and its checksums right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w", compression) as new:
        for entry in source.infolist():
            content = source.read(entry)
            pickled = entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, edit(content) if pickled else content)
    return out.getvalue()


def test_a_storage_that_claims_more_than_its_record_is_refused(base, tmp_path):
    data = saved({f"{QUERY}.lora_A": torch.zeros(4, 16)}, tmp_path)
    claim = rezipped(data, lambda content: content.replace(b"K\x40t", b"J\0\0\0\x7ft"))
    assert b"J\0\0\0\x7ft" in claim
    assert "not a whole file of torch.save: record size" in refused(claim, base, tmp_path)


def test_a_zip_that_unpacks_to_more_than_itself_is_refused(good, base, tmp_path):
    data = saved({**good, "classifier.dense.weight": torch.zeros(1000, 1000)}, tmp_path)
    bomb = rezipped(data, lambda content: content, zipfile.ZIP_DEFLATED)
    assert len(bomb) < len(data) / 20
    assert "bytes of contents in a file of" in refused(bomb, base, tmp_path)


def test_an_existing_folder_is_not_replaced(good, base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        imported(good, base, tmp_path)
    assert (tmp_path / "out" / "mine.txt").read_text() == "x"


CONFIGS = [
    None,
    "{",
    "{}",
    '{"model_type": "clip"}',
    '{"model_type": 3}',
    '{"model_type": "roberta", "hidden_size": "x"}',
    '{"model_type": "roberta", "hidden_size": 0}',
]


@pytest.mark.parametrize("content", CONFIGS)
def test_the_base_models_config_is_needed(good, tmp_path, content):
    (tmp_path / "there").mkdir()
    base = tmp_path / "there" / "base"
    base.mkdir()
    if content is not None:
        (base / "config.json").write_text(content)
    (tmp_path / "here").mkdir()
    assert "config.json" in refused(good, base, tmp_path / "here")


@pytest.fixture(scope="module")
def fuzzed(base, tmp_path_factory):
    """Give a valid file's bytes in both formats, and what is needed to read mutations of it."""
    folder = tmp_path_factory.mktemp("fuzz")
    state = saved_names(loralib_model(classes=2))
    files = [saved(state, folder, _use_new_zipfile_serialization=new) for new in (True, False)]
    return files, folder / "fuzz.bin", tiny_entry("roberta"), skeleton(base, 2)


@pytest.mark.slow
@settings(
    max_examples=4 * settings.default.max_examples,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    which=st.sampled_from(["zip", "pickle in a zip", "before torch 1.6"]),
    cut=st.just(1.0) | PLACE,
    edits=EDITS,
)
def test_mutated_files_are_refused_or_right(fuzzed, which, cut, edits):
    (new, old), file, entry, model = fuzzed
    if which == "pickle in a zip":
        data = rezipped(new, lambda content: mutated(content, cut, edits))
    else:
        data = mutated(new if which == "zip" else old, cut, edits)
    file.write_bytes(data)
    try:
        found = recognise(unwrapped(read_bin(file)), entry, model, file)
    except UserError as error:
        assert str(error).isprintable()
        return
    assert len(found.ranks) == 4
    assert all(tensor.isfinite().all() for tensor in found.state.values())
