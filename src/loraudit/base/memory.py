"""How much memory this machine has for jobs."""

import os
from pathlib import Path

LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Files in which Linux says how much memory a container may take (cgroups of version 2 and 1)."""

SHARE = 0.9
"""The rest is left to the system and to the process that starts the jobs."""

MB = 1_000_000


def memory_mb() -> int:
    """Return the memory that jobs may take together, in MB: the machine's, or its container's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in LIMITS:
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text))
    return int(SHARE * min(limits) / MB)
