"""Launch files: which are legal, what fits them, and what is proposed for what does not."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from hypothesis import given
from hypothesis import strategies as st

from loraudit.base.errors import UserError
from loraudit.base.gpu_slots import VISIBLE, Device
from loraudit.studies import launcher as module
from loraudit.studies.expand import load_study
from loraudit.studies.launcher import (
    accelerate_keys,
    gpus_per_machine,
    idle_gpus,
    launch_file,
    local_limits,
    read_launcher,
    require_devices,
    require_fit,
)
from loraudit.studies.study import Run
from tiny import make_spec

SHIPPED = sorted(Path("profiles/accelerate").glob("*.yaml"))
STUDIES = sorted(Path("config/studies").glob("*.yaml"))


def run(**fields) -> Run:
    return Run(id="words/tiny/lora/s0", label="lora", spec=make_spec(**fields))


def file(folder: Path, **keys) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({"num_processes": 1, **keys}))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_legal_and_leaves_the_precision_to_the_run(path):
    launcher = read_launcher(launch_file(path.stem))
    assert launcher["mixed_precision"] == "no"
    for precision in ("fp32", "bf16", *(() if launcher["use_cpu"] else ("tf32",))):
        batch = launcher["num_processes"]
        fitting = run(precision=precision, global_batch=batch, micro_batch=1)
        require_fit([fitting], path.stem, launcher)


def test_tf32_is_refused_on_the_cpu_before_anything_runs():
    """Each run said so, after its data and model were fetched."""
    with pytest.raises(UserError, match=r"precision tf32 is for GPUs.*launch=gpu"):
        require_fit([run(precision="tf32")], "cpu", read_launcher(launch_file("cpu")))


@pytest.mark.parametrize(
    ("name", "devices", "message"),
    [
        ("gpu8", "0,1,2,3", r"launch 'gpu8': .* 8 processes .* 4 can be used \(0, 1, 2, 3\)"),
        ("gpu2", "MIG-a,MIG-b", "can't use MIG instances"),
        ("two_nodes", "0", "2 machines, which takes SLURM"),
        ("gpu4", "0,1,2,3", ""),
        ("gpu8", "", ""),  # a study may be planned where no GPU is
        ("cpu", "0", ""),
    ],
)
def test_a_launch_file_that_no_run_can_start_by_is_refused_here(
    name, devices, message, monkeypatch
):
    monkeypatch.setenv(VISIBLE, devices)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    launcher = read_launcher(launch_file(name))
    if not message:
        return require_devices(name, launcher)
    with pytest.raises(UserError, match=message):
        require_devices(name, launcher)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    if name == "two_nodes":
        require_devices(name, launcher)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_there_is_a_file_for_so_many_gpus(count):
    assert gpus_per_machine(read_launcher(launch_file(f"gpu{count}"))) == count


def test_any_file_may_launch_runs_by_name_or_path(tmp_path, monkeypatch):
    path = file(tmp_path, num_processes=3, distributed_type="MULTI_GPU", rdzv_backend="static")
    assert read_launcher(launch_file(str(path)))["num_processes"] == 3
    (tmp_path / "profiles/accelerate").mkdir(parents=True)
    path.rename(tmp_path / "profiles/accelerate/three.yaml")
    monkeypatch.chdir(tmp_path)
    assert read_launcher(launch_file("three"))["num_processes"] == 3
    assert read_launcher(launch_file("gpu"))["num_processes"] == 1  # the shipped ones stay


def test_a_name_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"launch: 'gpu3' is not known; did you mean 'gpu\d?'"):
        launch_file("gpu3")
    with pytest.raises(UserError, match=r"launch: no file .*nowhere\.yaml"):
        launch_file(str(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_processes": {}}, "num_processes = {}"),
        ({"num_processes": 4}, "distributed_type NO starts one process, and num_processes is 4"),
        ({"distributed_type": "FSDP"}, r"distributed_type: 'FSDP' is not known.*MULTI_GPU, NO"),
        ({"mixed_precision": "fp16"}, r"mixed_precision: 'fp16' is not known.*bf16, no"),
        ({"use_cp": True}, "key: 'use_cp' is not known; did you mean 'use_cpu'"),
        ({"gpu_ids": "0"}, "gpu_ids '0' would put every run on the same GPUs"),
        (
            {"num_processes": 3, "num_machines": 2, "distributed_type": "MULTI_GPU"},
            "num_processes 3 do not spread evenly over num_machines 2",
        ),
    ],
)
def test_a_file_that_would_not_do_what_it_says_is_refused(keys, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_launcher(file(tmp_path, **keys))


def test_the_legal_keys_are_accelerates():
    assert accelerate_keys() == {field.name for field in dataclasses.fields(ClusterConfig)}


def test_a_key_that_stands_there_twice_is_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("num_processes: 1\nuse_cpu: true\nuse_cpu: false\n")
    with pytest.raises(UserError, match="key 'use_cpu' stands there twice"):
        read_launcher(path)


def test_an_unquoted_no_is_no(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("num_processes: 1\nmixed_precision: no\n")
    assert read_launcher(path)["mixed_precision"] == "no"


def test_another_precision_is_refused_with_what_would_fit(tmp_path):
    launcher = read_launcher(file(tmp_path, mixed_precision="bf16"))
    require_fit([run(precision="bf16")], "own", launcher)
    said = r'precision fp32; set mixed_precision: "no".* or precision: bf16 in'
    with pytest.raises(UserError, match=said):
        require_fit([run(precision="fp32")], "own", launcher)


PROPOSED = re.compile(r"set micro_batch: (\d+) in the study")
LEGAL = re.compile(r"\(legal: ([\d, ]+)\)")


@given(micro=st.integers(1, 6), times=st.integers(1, 12), processes=st.integers(1, 16))
def test_what_is_proposed_for_a_batch_fits_and_nothing_larger_does(micro, times, processes):
    batch = micro * times
    launcher = {"num_processes": processes, "mixed_precision": "no"}

    def fits(micro_batch: int, processes: int = processes) -> bool:
        return batch % micro_batch == 0 and batch % (micro_batch * processes) == 0

    try:
        require_fit([run(global_batch=batch, micro_batch=micro)], "x", launcher)
        assert fits(micro)
    except UserError as error:
        assert not fits(micro)
        if proposed := PROPOSED.search(str(error)):
            own = int(proposed[1])
            assert fits(own) and not any(fits(more) for more in range(own + 1, micro + 1))
            require_fit([run(global_batch=batch, micro_batch=own)], "x", launcher)
        else:
            legal = set(map(int, LEGAL.search(str(error))[1].split(",")))
            assert legal == {n for n in range(1, batch + 1) if fits(1, n)}
            assert processes not in legal


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_fits_every_number_of_gpus_once_it_does_what_it_is_told(path):
    runs = load_study(path).all_runs
    for name in ("gpu", "gpu2", "gpu4", "gpu8"):
        launcher = read_launcher(launch_file(name))
        for one in {(r.spec.global_batch, r.spec.micro_batch): r for r in runs}.values():
            try:
                require_fit([one], name, launcher)
            except UserError as error:
                proposed = PROPOSED.search(str(error))
                if not proposed:
                    assert one.spec.global_batch % launcher["num_processes"]
                    continue
                changed = one.spec.model_copy(update={"micro_batch": int(proposed[1])})
                require_fit([one.model_copy(update={"spec": changed})], name, launcher)


def test_a_machine_offers_its_memory_and_the_places_on_its_gpus(monkeypatch):
    monkeypatch.setenv(VISIBLE, "0,1,2,3")
    gpu, two, cpu = (read_launcher(launch_file(name)) for name in ("gpu", "gpu2", "cpu"))
    assert local_limits(gpu, 1)["gpu"] == local_limits(two, 1)["gpu"] == 4
    assert local_limits(gpu, 3)["gpu"] == 12
    assert "gpu" not in local_limits(cpu, 1)
    assert local_limits(cpu, 1)["mem_mb"] > 500
    monkeypatch.setenv(VISIBLE, "")
    assert "gpu" not in local_limits(gpu, 1)


def test_idle_gpus_are_mentioned_with_the_switch(monkeypatch):
    gpu, cpu = (read_launcher(launch_file(name)) for name in ("gpu", "cpu"))
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(module, "installed", lambda: [])
    assert idle_gpus(cpu) == []
    monkeypatch.setattr(module, "installed", lambda: [Device("0", "NVIDIA L4")] * 2)
    monkeypatch.setattr(module, "visible", lambda: ["0", "1"])
    (said,) = idle_gpus(cpu)
    assert said.startswith("2 GPUs of this machine (NVIDIA L4) will be idle")
    assert "--config launch=gpu" in said
    assert idle_gpus(gpu) == []
    monkeypatch.setattr(module, "visible", lambda: [])  # the user hides them
    assert idle_gpus(cpu) == []
