"""A model's folder is checked before anything of it is kept."""

import pytest

from loraudit.base.errors import UserError
from loraudit.data.fetch_model import fetch_model
from loraudit.studies.entries import FolderSource
from tiny import LFS_POINTER, save_tiny_model, tiny_entry


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_files_that_git_lfs_did_not_fetch_are_named(tmp_path, name):
    save_tiny_model(tmp_path / "source")
    (tmp_path / "source" / name).write_bytes(LFS_POINTER)
    entry = tiny_entry().model_copy(
        update={"source": FolderSource(folder=str(tmp_path / "source"))}
    )
    with pytest.raises(UserError, match=f"its {name} is a Git LFS pointer"):
        fetch_model(entry, tmp_path / "out")
    assert not (tmp_path / "out").exists()
