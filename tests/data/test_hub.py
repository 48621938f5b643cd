"""Repositories of the hub: what is fetched, the cache without a network, and what can fail."""

import errno
import shutil

import huggingface_hub
import pandas as pd
import pytest
import yaml
from humanize import naturalsize

from fake_hub import COMMIT, TOKEN, Repository, fake_hub, point_at
from loraudit.base.errors import UserError
from loraudit.base.files import read_json
from loraudit.data.fetch_model import fetch_model
from loraudit.data.fetch_task import fetch_task
from loraudit.studies.entries import HubSource
from tiny import make_task, save_hub_folder, save_tiny_model, sentences, tiny_entry

SOURCE = HubSource(hub="owner/name", revision=COMMIT, config="sst2")
OTHERS = ("coreml/fill-mask/Manifest.json", "coreml/a/model.mlmodel", "pytorch_model.bin")
KINDS = pytest.mark.parametrize("kind", ["model", "task"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Give the files of a model's and of a data set's repository, with much that nobody asks for.

    The data set has, as GLUE does, several configurations, and a test split in each.
    """
    root = tmp_path_factory.mktemp("hub")
    save_tiny_model(root / "model")
    (root / "model/manifest.json").unlink()
    for name in OTHERS:
        (root / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "model" / name).write_bytes(b"{}" * 50_000)
    configs = []
    for config in ("ax", "sst2", "cola"):
        save_hub_folder(root / "part", config=config)
        shutil.copytree(root / "part" / config, root / "task" / config)
        sentences(500, 9).to_parquet(root / "task" / config / "test-00000-of-00001.parquet")
        splits = ["test"] if config == "ax" else ["train", "validation", "test"]
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        configs.append({"config_name": config, "data_files": files})
        shutil.rmtree(root / "part")
    card = yaml.safe_dump({"language": "en", "configs": configs})
    (root / "task/README.md").write_text(f"---\n{card}---\n# A card\n")
    return root


@pytest.fixture
def repositories(folders):
    return {
        "models/owner/name": Repository(folders / "model"),
        "datasets/owner/name": Repository(folders / "task"),
    }


def fetch(kind: str, out, **changes) -> None:
    """Fetch the model or the task from its repository, or from one that `changes` say."""
    source = SOURCE.model_copy(update=changes)
    if kind == "model":
        fetch_model(tiny_entry().model_copy(update={"source": source}), out)
    else:
        fetch_task(make_task(source=source), out)


def size(folder, names) -> str:
    return naturalsize(sum((folder / name).stat().st_size for name in names))


def test_of_a_model_only_what_is_read_is_fetched_and_its_size_is_said_once(
    repositories, folders, tmp_path, monkeypatch, capfd
):
    with fake_hub(repositories) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        fetch("model", tmp_path / "out")
    names = set(read_json(tmp_path / "out/manifest.json")["files"])
    assert names == {path.name for path in (folders / "model").iterdir()} - {"coreml", OTHERS[2]}
    got = {path.rpartition(COMMIT + "/")[2] for path in hub.seen if "/resolve/" in path}
    assert got == names
    said = [line for line in capfd.readouterr().err.splitlines() if "owner/name" in line]
    assert said == [
        f"fetching hub repository owner/name @1111111: {size(folders / 'model', names)} at most"
    ]


def test_of_a_data_set_only_the_splits_asked_for_are_fetched_and_their_size_is_said_once(
    repositories, folders, tmp_path, monkeypatch, capfd
):
    with fake_hub(repositories) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        fetch("task", tmp_path / "out")
    names = [f"sst2/{split}-00000-of-00001.parquet" for split in ("train", "validation")]
    got = {path.rpartition(COMMIT + "/")[2] for path in hub.seen if "/resolve/" in path}
    assert got == {"README.md", *names}
    said = [line for line in capfd.readouterr().err.splitlines() if "owner/name" in line]
    assert said == [
        f"fetching hub repository owner/name @1111111: {size(folders / 'task', names)} at most"
    ]
    assert len(pd.read_parquet(tmp_path / "out/train.parquet")) == 256


CARDS = [
    {"config_name": "sst2", "data_files": {"train": "sst2/train-*", "validation": "sst2/val*"}},
    {"config_name": "sst2", "data_dir": "sst2"},
    {"config_name": "sst2", "data_files": [{"split": "train", "path": ["sst2/train-*"]},
                                           {"split": "validation", "path": "**/val*"}]},
    None,
]  # fmt: skip
"""Ways in which README.md may name a configuration's files; the last one: not at all."""


@pytest.mark.parametrize("card", CARDS)
def test_a_card_may_name_the_files_in_several_ways(card, tmp_path, monkeypatch):
    save_hub_folder(tmp_path / "task")
    text = yaml.safe_dump({"configs": [card]} if card else {"license": "mit"})
    (tmp_path / "task/README.md").write_text(f"---\n{text}---\n")
    with fake_hub({"datasets/owner/name": Repository(tmp_path / "task")}) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        fetch("task", tmp_path / "out", config="sst2" if card else None)
    assert len(pd.read_parquet(tmp_path / "out/validation.parquet")) == 128


def test_a_configuration_that_the_card_does_not_name_fetches_nothing(
    repositories, tmp_path, monkeypatch
):
    with fake_hub(repositories) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        with pytest.raises(UserError, match=r"configuration: 'sts2' is not known; did .*'sst2'"):
            fetch("task", tmp_path / "out", config="sts2")
    assert not [path for path in hub.seen if "parquet" in path]


@KINDS
def test_a_repository_that_was_renamed_is_followed(kind, repositories, tmp_path, monkeypatch):
    with fake_hub(repositories, renamed={"old/name": "owner/name"}) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        fetch(kind, tmp_path / "out", hub="old/name")
    assert (tmp_path / "out/manifest.json").is_file()


@KINDS
def test_what_was_fetched_once_needs_no_network_the_next_time(
    kind, repositories, tmp_path, monkeypatch
):
    with fake_hub(repositories) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        fetch(kind, tmp_path / "out")
    point_at(monkeypatch, hub.url, tmp_path / "cache", HF_HUB_OFFLINE=True)
    fetch(kind, tmp_path / "again")
    assert read_json(tmp_path / "again/manifest.json") == read_json(tmp_path / "out/manifest.json")


@KINDS
@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        ({"hub": "owner/nmae"}, {}, r"owner/nmae .*\(no such .* repository\): correct its name"),
        ({"revision": "2" * 40}, {}, r"\(no such revision '2{40}'\): take .* from .*/commits/main"),
        ({}, {"HF_HUB_OFFLINE": True}, r"\(HF_HUB_OFFLINE is set\): the cache .*cache does not"),
        ({}, {"HF_HUB_DISABLE_XET": False}, r"\(its xet storage: .*\): .*HF_HUB_DISABLE_XET=1"),
    ],
)
def test_why_the_hub_gives_no_file_is_one_sentence_with_a_remedy(
    kind, changes, settings, reason, repositories, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "0")
    with fake_hub(repositories) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache", **settings)
        with pytest.raises(UserError, match=reason):
            fetch(kind, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@KINDS
def test_a_gated_repository_needs_a_token_of_a_user_with_access(
    kind, repositories, tmp_path, monkeypatch
):
    for repository in repositories.values():
        repository.gated = True
    page = "owner/name" if kind == "model" else "datasets/owner/name"
    with fake_hub(repositories) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        with pytest.raises(UserError, match=rf"\(it is gated\): ask .* {hub.url}/{page}, make"):
            fetch(kind, tmp_path / "out")
        monkeypatch.setenv("HF_TOKEN", "hf_of_another_user")
        with pytest.raises(UserError, match="the account of the token that was sent has no access"):
            fetch(kind, tmp_path / "out")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        fetch(kind, tmp_path / "out")
    assert (tmp_path / "out/manifest.json").is_file()


@KINDS
def test_a_token_that_the_hub_does_not_know_is_called_so(kind, repositories, tmp_path, monkeypatch):
    with fake_hub(repositories) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", "hf_expired")
        with pytest.raises(UserError, match=r"refuses the token that was sent.*renew HF_TOKEN"):
            fetch(kind, tmp_path / "out")


@KINDS
def test_a_full_disk_is_called_so(kind, repositories, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with fake_hub(repositories) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
        with pytest.raises(UserError, match=r"\(the disk: .*No space.*\): make room in .*cache"):
            fetch(kind, tmp_path / "out")


@KINDS
@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("hangs", "ReadTimeout"),
        ("500", "HfHubHTTPError"),
        ("half", "RemoteProtocolError"),
        ("file hangs", "ReadTimeout"),
        ("file 500", "HfHubHTTPError"),
    ],
)
def test_a_hub_that_fails_is_one_sentence_after_few_tries(
    kind, mode, reason, repositories, tmp_path, monkeypatch
):
    """And nothing of it is kept: when it is sound again, it is read."""
    with fake_hub(repositories, mode) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        with pytest.raises(UserError) as error:
            fetch(kind, tmp_path / "out")
        assert max(hub.seen.values()) <= 6
    assert str(error.value).startswith(
        f"cannot get owner/name from the Hugging Face hub ({reason}: "
    )
    assert {"model": "models=", "task": "glue="}[kind] in str(error.value)
    assert not (tmp_path / "out").exists()
    with fake_hub(repositories) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        fetch(kind, tmp_path / "out")
    assert (tmp_path / "out/manifest.json").is_file()


@KINDS
def test_a_hub_that_is_not_there_is_one_sentence(kind, tmp_path, monkeypatch):
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    with pytest.raises(UserError, match=r"\(ConnectError: .*refused\); connect this machine, give"):
        fetch(kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()
