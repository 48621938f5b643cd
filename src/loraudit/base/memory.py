"""How much memory this machine has for jobs."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = {"": (Path("/sys/fs/cgroup"), "memory.max"),
          "memory": (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")}  # fmt: skip
"""Where Linux says how much memory a group of processes may take (cgroups of version 2 and 1)."""

OWN = Path("/proc/self/cgroup")
"""Names this process's group: lines such as "0::/job_7/step_0" (2) or "5:memory:/job_7" (1)."""

SHARE = 0.9
"""The rest is left to the system and to the process that starts the jobs."""

MB = 1_000_000


def memory_mb() -> int:
    """Return the memory that jobs may take together, in MB.

    It is the machine's, or what the container or the cluster's job that this runs in may take.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits()]
    return int(SHARE * min(limits) / MB)


def _group_limits() -> Iterator[int]:
    """Return the limits in bytes of this process's group and of those that it is in."""
    lines = OWN.read_text().splitlines() if OWN.is_file() else []
    named = {kinds: path for _, kinds, path in (line.split(":", 2) for line in lines)}
    for kind, (root, name) in GROUPS.items():
        mine = next((path for kinds, path in named.items() if kind in kinds.split(",")), "/")
        inner = root / mine.strip("/")
        within = [one for one in (inner, *inner.parents) if one.is_relative_to(root)]
        for file in (folder / name for folder in within):
            with suppress(OSError):
                if (text := file.read_text().strip()).isdigit():
                    yield int(text)
