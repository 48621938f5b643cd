"""How long jobs take together on a machine that has room for some of them at a time."""

import heapq
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple


class Room(NamedTuple):
    """What a job takes, or a machine has: cores, MB of memory, and places on GPUs."""

    cores: int
    mem_mb: int = 0
    gpus: int = 0

    def times(self, job: "Room") -> int:
        """Return how many such jobs fit into this room at once; one always does."""
        parts = [have // need for have, need in zip(self, job, strict=True) if need]
        return max(1, min(parts))


def schedule(jobs: Iterable[tuple[Room, float]], room: Room) -> float:
    """Return the time until all jobs are done, if each starts as soon as it fits.

    Those that take the same start in order; one that takes more than there is runs alone, as in
    Snakemake.

    Args:
        jobs: what each takes, and its seconds.
        room: what the machine has.
    """
    waiting: dict[Room, deque[float]] = {}
    for need, seconds in jobs:
        capped = Room(*(min(n, have) for n, have in zip(need, room, strict=True)))
        waiting.setdefault(capped, deque()).append(seconds)
    running: list[tuple[float, Room]] = []
    now, free = 0.0, list(room)
    while running or any(waiting.values()):
        for need, queue in waiting.items():
            while queue and all(n <= f for n, f in zip(need, free, strict=True)):
                free = [f - n for n, f in zip(need, free, strict=True)]
                heapq.heappush(running, (now + queue.popleft(), need))
        now, ended = heapq.heappop(running)
        free = [f + n for n, f in zip(ended, free, strict=True)]
    return now
