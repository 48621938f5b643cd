"""Snakemake's scheduler has one timer that waits, and not one more for each finished job."""

import threading
import time

import pytest
from snakemake.scheduling.job_scheduler import JobScheduler

from loraudit.base.snakemake_timer import one_timer


@pytest.fixture
def scheduler(monkeypatch):
    """Give a scheduler that can be woken; Snakemake has its own timers again afterwards."""
    monkeypatch.setattr(
        JobScheduler, "_schedule_reevalutation", JobScheduler._schedule_reevalutation
    )
    made = JobScheduler.__new__(JobScheduler)
    made._open_jobs = threading.Semaphore(0)
    return made


def woken(scheduler, calls: int) -> int:
    """Return how often the scheduler is woken by so many timers."""
    for _ in range(calls):
        scheduler._schedule_reevalutation(0.2)
    time.sleep(0.6)
    times = 0
    while scheduler._open_jobs.acquire(blocking=False):
        times += 1
    return times


def test_snakemakes_own_timers_all_wake_it(scheduler):
    """If this fails, Snakemake has mended it, and loraudit.base.snakemake_timer can go."""
    assert woken(scheduler, 20) == 20


def test_many_timers_are_one_and_the_next_comes_after_it(scheduler):
    one_timer()
    assert woken(scheduler, 20) == 1
    assert woken(scheduler, 20) == 1
