"""slurm.sh, with replacements for SLURM's commands; full and read-only file systems."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from conftest import SCRIPTS, some, wait_for

SRUN = """#!{python}
import os, signal, subprocess, sys

command = sys.argv[1:]
while command[0].startswith("--"):
    del command[0]
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):  # srun does not exit on these signals
    signal.signal(getattr(signal, name), lambda *_: None)
tasks = int(os.environ["SLURM_NTASKS"])
children = [
    subprocess.Popen(command, env=dict(os.environ, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)))
    for i in range(tasks)
]
sys.exit(max(child.wait() for child in children))
"""
SCONTROL = """#!/bin/sh
case $1 in
    show) echo "$3" ;;
    requeue) echo "$2" >>requeued ;;
esac
"""
ONE_TASK = {"SLURM_NTASKS": "1"}
WEIGHTS = Path("last") / "model.safetensors"


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment variables of a SLURM job, with replacements for srun and scontrol in PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }


def submit(project: Path, cluster: dict[str, str], *arguments: str) -> subprocess.Popen:
    command = ["bash", "slurm.sh", "--save_steps", "1", *arguments]
    with (project / "output.txt").open("a") as output:
        return subprocess.Popen(command, cwd=project, env=cluster, stdout=output, stderr=output)


def processes_of(job: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes of the run, without the shell and srun."""
    below = psutil.Process(job.pid).children(recursive=True)
    return [process for process in below if "train.py" in process.cmdline()[:2]]


@pytest.mark.parametrize("task", ["classification"])
def test_job_signalled_before_its_time_limit_is_requeued_and_ends_with_the_same_weights(
    project: Path, cluster: dict[str, str]
) -> None:
    short = ["--max_steps", "40"]
    assert submit(project, cluster, *short, "--outdir", "whole").wait(120) == 0
    job = submit(project, cluster, *short, "--outdir", "run")
    wait_for(lambda: (project / "run" / "last").exists())
    for process in processes_of(job):
        process.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 75, (project / "output.txt").read_text()[-3000:]
    assert (project / "requeued").read_text() == f"{os.getpid()}\n"
    assert submit(project, cluster, *short, "--outdir", "run").wait(120) == 0
    weights = [(project / outdir / WEIGHTS).read_bytes() for outdir in ("whole", "run")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("task", ["classification"])
@pytest.mark.parametrize("name", some(["SIGUSR1", "SIGUSR2", "SIGHUP"]))
def test_job_is_requeued_if_its_shell_and_srun_also_get_the_signal(
    name: str, project: Path, cluster: dict[str, str]
) -> None:
    """`scancel --full` signals the shell and srun, too. So does submitit, with SIGUSR2."""
    job = submit(project, cluster | ONE_TASK, "--epochs", "999")
    wait_for(lambda: (project / "outputs" / "last").exists())
    (srun,) = psutil.Process(job.pid).children()
    for process in [*processes_of(job), srun, job]:
        process.send_signal(signal.Signals[name])
    assert job.wait(120) == 75, (project / "output.txt").read_text()[-3000:]
    assert f"stopped by {name} and saved" in (project / "output.txt").read_text()
    assert (project / "requeued").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("task", ["classification"])
def test_cancelled_job_saves_and_is_not_requeued(project: Path, cluster: dict[str, str]) -> None:
    job = submit(project, cluster | ONE_TASK, "--epochs", "999")
    wait_for(lambda: (project / "outputs" / "last").exists())
    for process in [*processes_of(job), job]:
        process.send_signal(signal.SIGTERM)
    assert job.wait(120) == 75
    assert "stopped by SIGTERM and saved" in (project / "output.txt").read_text()
    assert not (project / "requeued").exists()


@pytest.mark.parametrize("task", ["classification"])
def test_slurm_sh_outside_of_a_job_ends_with_one_sentence(project: Path) -> None:
    done = subprocess.run(["bash", "slurm.sh"], cwd=project, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.endswith("SLURM_JOB_ID: is not set; submit this script with sbatch\n")
    assert done.stderr.count("\n") == 1


def can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(command, capture_output=True).returncode
    )


FULL = """
set -e
mkdir small
mount -t tmpfs -o size=12m none small
code=0; python train.py --train_input data/valid.jsonl --outdir small/run || code=$?
echo "code $code"
mount -o remount,ro small
code=0; python train.py --outdir small/other || code=$?
echo "code $code"
PYTHONPATH=. python "$1" small/run
"""


@pytest.mark.skipif(not can_mount(), reason="needs unshare and user namespaces to mount a tmpfs")
@pytest.mark.parametrize("task", ["classification"])
def test_checkpoints_stay_intact_on_full_and_read_only_file_systems(
    project: Path, cluster: dict[str, str]
) -> None:
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", FULL, "bash", str(SCRIPTS / "find_faults.py")],
        cwd=project,
        env=cluster,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines()[-3:-1] == ["code 2", "code 2"]
    assert done.stdout.splitlines()[-1] == "None None"
    sentences = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert len(sentences) == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
