"""`accelerate launch`, without a second Python process when one process is all it would start.

Takes accelerate launch's arguments. Where Accelerate would start the program once, it is run here,
in the environment that Accelerate makes for it: torch is imported once instead of twice. Several
processes or machines are Accelerate's to start, as ever.
"""

import os
import runpy
import sys

import torch
from accelerate.commands import launch


def run_here(arguments) -> None:
    """Do what Accelerate's simple_launcher does, in this process."""
    _, environment = launch.prepare_simple_launcher_cmd_env(arguments)
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):  # torch read it before it was set
        torch.set_num_threads(int(threads))
    sys.argv = [arguments.training_script, *arguments.training_script_args]
    runpy.run_path(arguments.training_script, run_name="__main__")


launch.simple_launcher = run_here
launch.main()
