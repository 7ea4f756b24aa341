"""Runs on two hosts, which are connected network namespaces with a shared file system."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from conftest import SCRIPTS, wait_for

# All processes and namespaces end when `unshare` ends. `unshare` ends when the tests end, even if
# they are killed.
NAMESPACES = ["setpriv", "--pdeathsig", "KILL", "unshare", "-rnmpf", "--mount-proc"]
NAMESPACES += ["--kill-child", "bash", "-ec"]
ONE_HOST = 'ip link set lo up; "$@"'
# Each host resolves the name of the other, as torch requires. If the command on host2 fails,
# this command is started again.
HOSTS = """
mount -t tmpfs none /var/run
printf '%s\\n' '127.0.0.1 localhost' '10.0.0.1 host1' '10.0.0.2 host2' >/var/run/hosts
ip netns add host1
ip netns add host2
ip link add eth0 netns host1 type veth peer name eth0 netns host2
for number in 1 2; do
    ip -n host$number link set lo up
    ip -n host$number link set eth0 up
    ip -n host$number address add 10.0.0.$number/24 dev eth0
done
on() {
    ip netns exec "$1" unshare --uts bash -ec '
        hostname "$0"
        mount --bind /var/run/hosts /etc/hosts
        exec "$@"' "$@"
}
on host1 true
on host2 true
on host1 "$@" &
until on host2 "$@"; do sleep 1; done
wait $!
"""
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
}
FOR_HOSTS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "eth0"}
ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
TWO_PROCESSES = [ACCELERATE, "launch", "--multi_gpu", "--num_processes", "2"]
# The command of configs/nodes.yaml, changed to two processes in total, without GPUs.
NODES = [ACCELERATE, "launch", "--config_file", "configs/nodes.yaml", "--rdzv_backend", "c10d"]
NODES += ["--main_process_ip", "host1", "--max_restarts", "3"]
NODES += ["--num_processes", "2", "--mixed_precision", "no"]
# A replacement for srun, which runs one task on each host, as with --nodes 2.
SRUN = f"""#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec bash -ec {shlex.quote(HOSTS)} bash bash -c '
    SLURM_PROCID=$((${{HOSTNAME#host}} - 1)) SLURM_LOCALID=0 exec "$@"' task "$@"
"""
SCONTROL = """#!/bin/sh
printf '%s\\n' host1 host2
"""
TRAIN = ["train.py", "--max_steps", "60", "--save_steps", "1", "--restore_dir", "auto"]


def can_make_hosts() -> bool:
    command = [*NAMESPACES, HOSTS, "bash", "true"]
    return (
        shutil.which("setpriv") is not None
        and not subprocess.run(command, capture_output=True).returncode
    )


pytestmark = pytest.mark.skipif(
    not can_make_hosts(), reason="needs util-linux, iproute2, and permission to create namespaces"
)


@contextmanager
def running(project: Path, script: str, *command: str, **variables: str) -> Iterator[Popen]:
    """Run a script with a command, in namespaces that are removed at the end of the block."""
    with (project / "output.txt").open("w") as output:
        job = Popen(
            [*NAMESPACES, script, "bash", *command],
            cwd=project,
            env={**ENVIRONMENT, **variables},
            stdout=output,
            stderr=output,
        )
    try:
        yield job
    finally:
        job.kill()
        job.wait()


def end(job: Popen, project: Path) -> None:
    assert job.wait(timeout=180) == 0, (project / "output.txt").read_text()[-3000:]


def workers_of(job: Popen) -> list[psutil.Process]:
    """Return the training processes, sorted by rank. The parent of each process is its launcher."""
    below = psutil.Process(job.pid).children(recursive=True)
    found = [process for process in below if "train.py" in process.cmdline()[:3]]
    return sorted(found, key=lambda process: int(process.environ()["RANK"]))


def network_of(process: psutil.Process) -> str:
    return os.readlink(f"/proc/{process.pid}/ns/net")


@pytest.mark.parametrize("task", ["classification"])
def test_run_on_two_hosts_resumes_after_one_host_fails(project: Path) -> None:
    def step() -> int:
        state = project / "run" / "last" / "training_state.json"
        return json.loads(state.read_text())["step"]

    def goes_on_without(*dead: psutil.Process) -> None:
        workers = workers_of(job)
        for process in dead:
            process.kill()
        wait_for(lambda: not any(worker.is_running() for worker in workers))
        before = step()
        wait_for(lambda: step() > before)

    with running(project, HOSTS, *NODES, *TRAIN, "--outdir", "run", **FOR_HOSTS) as job:
        wait_for(lambda: (project / "run" / "last").exists())
        workers = workers_of(job)
        assert len(set(map(network_of, workers))) == 2
        launcher = workers[1].parent()
        assert launcher
        goes_on_without(workers[1])
        assert launcher.is_running()
        goes_on_without(launcher, workers_of(job)[1])
        end(job, project)
    with running(project, ONE_HOST, *TWO_PROCESSES, *TRAIN, "--outdir", "whole") as job:
        end(job, project)

    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "find_faults.py"), "run"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "None None\n", done.stderr
    for name in ("best/model", "last/model", "last/optimizer"):
        contents = {
            (project / outdir / f"{name}.safetensors").read_bytes() for outdir in ("run", "whole")
        }
        assert len(contents) == 1, name


@pytest.mark.parametrize("task", ["classification"])
def test_slurm_job_on_two_hosts_trains(project: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    variables = {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "host[1-2]",
        "SLURM_NTASKS": "2",
    }
    submission = ["bash", "slurm.sh", "--max_steps", "4"]
    with running(project, '"$@"', *submission, **variables) as job:
        end(job, project)
    assert (project / "outputs" / "best" / "model.safetensors").exists()
    for words in ("parameters from", "steps in"):  # only one of the hosts prints these words
        assert (project / "output.txt").read_text().count(words) == 1
