"""A schedule fits into the room that there is, and wastes none that a waiting job could take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraudit.tools.room import Room, schedule

SECONDS = st.lists(st.floats(0, 1e6), max_size=20)


@given(SECONDS, st.integers(1, 8))
def test_equal_jobs_take_no_less_than_their_share_and_the_longest(seconds, slots):
    found = schedule([(Room(1), length) for length in seconds], Room(slots))
    assert found == pytest.approx(sum(seconds)) if slots == 1 else True
    assert found <= sum(seconds) + 1e-6
    assert found >= max([sum(seconds) / slots, *seconds], default=0) - 1e-6


@given(SECONDS, st.integers(1, 4), st.integers(1, 4))
def test_whatever_there_is_least_of_decides(seconds, gpus, more):
    need = Room(1, 100, 1)
    jobs = [(need, length) for length in seconds]
    by_gpu = schedule(jobs, Room(gpus + more, 100 * (gpus + more), gpus))
    by_memory = schedule(jobs, Room(gpus + more, 100 * gpus + 99, gpus + more))
    assert by_gpu == by_memory == schedule([(Room(1), s) for s in seconds], Room(gpus))


def test_jobs_without_a_gpu_run_beside_those_with_one():
    trained, checked = Room(1, 0, 1), Room(1)
    jobs = [(trained, 10.0)] * 3 + [(checked, 10.0)] * 3
    assert schedule(jobs, Room(2, 0, 1)) == 30
    assert schedule(jobs, Room(1, 0, 1)) == 60


def test_a_job_that_asks_for_more_than_there_is_runs_alone():
    big, small = Room(1, 900), Room(1, 100)
    assert schedule([(big, 5.0), (big, 5.0), (small, 1.0)], Room(8, 500)) == 11
    assert Room(8, 500).times(big) == 1
