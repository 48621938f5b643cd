"""The memory that jobs may take is the machine's, or the container's if that is less."""

import psutil
import pytest

from loraudit.base import memory


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Give the folder of this machine's groups, in which there are no limits, and their names."""
    kinds = {"": (tmp_path, "memory.max"), "memory": (tmp_path / "v1", "limit")}
    monkeypatch.setattr(memory, "GROUPS", kinds)
    monkeypatch.setattr(memory, "OWN", tmp_path / "own")
    return tmp_path


def test_a_containers_limit_counts_where_it_is_the_smaller(groups):
    whole = memory.memory_mb()
    assert whole == int(0.9 * psutil.virtual_memory().total / 1e6)
    for text, wanted in (("max\n", whole), ("2000000000\n", 1800), (str(2**62), whole)):
        (groups / "memory.max").write_text(text)
        assert memory.memory_mb() == wanted


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("0::/slurm/job_7/step_0\n", "slurm/job_7/memory.max"),
        ("0::/slurm/job_7/step_0\n", "slurm/job_7/step_0/memory.max"),
        ("12:cpu,cpuacct:/x\n5:memory:/slurm/job_7\n", "v1/slurm/job_7/limit"),
    ],
)
def test_the_limit_of_a_clusters_job_counts(groups, own, file):
    """Inside salloc of a part of a node, nine tenths of the whole node were planned with."""
    (groups / "own").write_text(own)
    (groups / file).parent.mkdir(parents=True)
    (groups / file).write_text("3000000000\n")
    (groups / "slurm/job_8").mkdir(parents=True)
    (groups / "slurm/job_8/memory.max").write_text("1000000000\n")  # another job's
    assert memory.memory_mb() == 2700
