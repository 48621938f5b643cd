"""One timer where Snakemake keeps a growing number of them.

Snakemake looks for jobs to start when one has ended, and a second later once more, because its
limit of jobs per second (`--max-jobs-per-timespan`) may then allow some (job_scheduler.py,
`_schedule_reevalutation`; 9.27). It also starts a timer after a look that a timer had asked for.
No timer therefore ever ends for good, and each finished job adds one: after a hundred jobs
Snakemake looks for jobs a hundred times a second, and works out the parameters of all that are
ready each time.
"""

import threading


def one_timer() -> None:
    """Let Snakemake's scheduler have at most one timer that waits; the workflow calls it once.

    A look at the jobs answers all timers at once, so one that waits is enough. A version of
    Snakemake without these timers is left as it is.
    """
    from snakemake.scheduling.job_scheduler import JobScheduler

    if not hasattr(JobScheduler, "_schedule_reevalutation"):
        return

    def wake(self) -> None:
        self._timer = None  # first: the look that follows may want the next timer
        self._open_jobs.release()

    def schedule(self, delay: float) -> None:
        if getattr(self, "_timer", None) is None:
            self._timer = threading.Timer(delay, wake, [self])
            self._timer.daemon = True  # at its end Snakemake need not wait for it
            self._timer.start()

    JobScheduler._schedule_reevalutation = schedule
