"""The memory that jobs may take is the machine's, or the container's if that is less."""

import psutil

from loraudit.base import memory


def test_a_containers_limit_counts_where_it_is_the_smaller(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "LIMITS", (limit,))
    whole = memory.memory_mb()
    assert whole == int(0.9 * psutil.virtual_memory().total / 1e6)
    for text, wanted in (("max\n", whole), ("2000000000\n", 1800), (str(2**62), whole)):
        limit.write_text(text)
        assert memory.memory_mb() == wanted
