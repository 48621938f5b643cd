"""A dry run of Snakemake that prints each of its jobs as a line of JSON.

A line has the job's rule, its wildcards, and the names of the runs whose records it writes.

`python -m loraudit.tools.dry_run OPTIONS` takes Snakemake's options. A logger plugin, the interface
at which Snakemake hands out what it says as data, prints the jobs on stdout and errors on stderr,
in place of Snakemake's own text. This is a program of its own because Snakemake sets its loggers up
once per process.
"""

import json
import logging
import sys

from snakemake.cli import main
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

NAME = "loraudit-jobs"
RECORD = "/record.json"


class LogHandler(LogHandlerBase):
    """Prints jobs and errors; all else that Snakemake says is left out."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record that is about a job or an error."""
        if getattr(record, "event", None) == LogEvent.JOB_INFO:
            fields = vars(record)
            wildcards = dict(fields["wildcards"] or {})
            records = [str(path) for path in fields["output"] or [] if path.endswith(RECORD)]
            runs = [path.removesuffix(RECORD).partition("/runs/")[2] for path in records]
            job = {"rule": fields["rule_name"], "wildcards": wildcards, "runs": runs}
            print(json.dumps(job))
        elif record.levelno >= logging.ERROR:
            print(record.getMessage(), file=sys.stderr)

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = False
    needs_rulegraph = False


if __name__ == "__main__":
    LoggerPluginRegistry().register_plugin(NAME, sys.modules[__name__])
    main(["--dry-run", "--nocolor", "--logger", NAME, *sys.argv[1:]])
