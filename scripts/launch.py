"""Launch a rule's job as Accelerate does: no second Python where one will do, GPUs, several nodes.

Takes accelerate launch's arguments. Where Accelerate would start the program once, it is run here,
in the environment that Accelerate makes for it: torch is imported once instead of twice. Several
processes are Accelerate's to start, as ever. A launch file that wants GPUs gets its own of the
machine's (gpu_slots.py), and one for several machines is started on each node of the SLURM job.
"""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.commands import launch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.errors import run_program
from loraudit.base.forks import THREADS
from loraudit.base.gpu_slots import hold, runs_per_gpu, visible

FIRST_PORT, PORTS = 20_000, 20_000


def run_here(arguments) -> None:
    """Do what Accelerate's simple_launcher does, in this process."""
    _, environment = launch.prepare_simple_launcher_cmd_env(arguments)
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):  # torch read it before it was set
        torch.set_num_threads(int(threads))
    sys.argv = [arguments.training_script, *arguments.training_script_args]
    runpy.run_path(arguments.training_script, run_name="__main__")


def on_own_gpus(start: Callable) -> Callable:
    """Let a launcher of Accelerate's see as many GPUs as it starts processes here, its own.

    Nothing may start CUDA before: a process that has started it keeps the devices that it saw.
    """

    def launcher(arguments) -> None:
        gpus = 0 if arguments.use_cpu else arguments.num_processes // arguments.num_machines
        with hold(gpus, visible() if gpus else [], runs_per_gpu()):
            start(arguments)

    return launcher


def on_own_threads(start: Callable) -> Callable:
    """Let a launcher give each process its own threads; Snakemake's are those of all together."""

    def launcher(arguments) -> None:
        if threads := arguments.num_cpu_threads_per_process:
            os.environ.update(dict.fromkeys(THREADS, str(threads)))
        start(arguments)

    return launcher


def on_every_node(start: Callable) -> Callable:
    """Let a launcher for several machines run on each node of its SLURM job.

    In the job's batch script it starts this program again by srun, one per node; there it fills in
    what Accelerate must know: which node this is, and where the first one listens. Without SLURM
    these are arguments to give by hand (--machine_rank, --main_process_ip).
    """

    def launcher(arguments) -> None:
        nodes, job = arguments.num_machines, os.environ.get("SLURM_JOB_ID")
        if nodes > 1 and job:
            if "SLURM_STEP_ID" not in os.environ:
                each = arguments.num_processes // nodes
                cores = each * (arguments.num_cpu_threads_per_process or 1)
                srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
                again = [f"--cpus-per-task={cores}", sys.executable, *sys.argv]
                os.execvp("srun", [*srun, *again])
            arguments.machine_rank = int(os.environ["SLURM_NODEID"])
            arguments.main_process_ip = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
            arguments.main_process_port = FIRST_PORT + int(job) % PORTS
        start(arguments)

    return launcher


launch.simple_launcher = on_own_gpus(run_here)
launch.multi_gpu_launcher = on_every_node(on_own_threads(on_own_gpus(launch.multi_gpu_launcher)))
run_program(launch.main)
