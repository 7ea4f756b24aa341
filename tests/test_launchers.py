"""`accelerate launch` with one and two processes: signals, killed processes, and restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from conftest import some, wait_for

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ACCELERATE = Path(sys.executable).with_name("accelerate")
TWO_PROCESSES: list[str | Path] = [ACCELERATE, "launch", "--config_file", "configs/cpus.yaml"]
FOR_SIGNALS = {  # as in docs/interruption.md of a project, but with a shorter timeout
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}

pytestmark = pytest.mark.parametrize("task", ["classification"])


def run(project: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        cwd=project,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
    )


def start_endless(project: Path, *launcher: str | Path) -> subprocess.Popen[str]:
    """Start a run that would take hours, and wait for its first save."""
    endless = ["--epochs", "999", "--save_steps", "1", "--restore_dir", "auto"]
    started = subprocess.Popen(
        [str(word) for word in [*launcher, "train.py", *endless]],
        cwd=project,
        env={**ENVIRONMENT, **FOR_SIGNALS, "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.DEVNULL,
        stderr=(project / "stderr.txt").open("w"),
        text=True,
    )
    wait_for(lambda: (project / "outputs" / "last").exists())
    return started


def workers_of(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(launcher.pid).children()
    return [child for child in children if "train.py" in child.cmdline()]


@pytest.mark.parametrize("name", some(["SIGTERM", "SIGINT", "SIGUSR1"]))
def test_signal_to_the_launcher_saves_the_run(name: str, project: Path) -> None:
    launcher = start_endless(project, *TWO_PROCESSES)
    workers = workers_of(launcher)
    assert len(workers) == 2
    launcher.send_signal(signal.Signals[name])
    launcher.wait(timeout=120)
    assert not any(worker.is_running() for worker in workers)
    assert f"train.py: stopped by {name} and saved" in (project / "stderr.txt").read_text()


def test_run_saves_if_its_launcher_exits(project: Path) -> None:
    launcher = start_endless(project, ACCELERATE, "launch")
    (worker,) = workers_of(launcher)
    launcher.terminate()
    launcher.wait(timeout=120)
    worker.wait(timeout=120)
    expected = "train.py: stopped by the exit of its launcher and saved"
    assert expected in (project / "stderr.txt").read_text()


def test_launcher_restarts_a_run_that_lost_a_process(project: Path) -> None:
    def step() -> int:
        state = project / "outputs" / "last" / "training_state.json"
        return json.loads(state.read_text())["step"]

    restarting = [*TWO_PROCESSES, "--rdzv_backend", "c10d", "--max_restarts", "1"]
    launcher = start_endless(project, *restarting)
    dead = workers_of(launcher)
    dead[1].kill()
    wait_for(lambda: not any(process.is_running() for process in dead))
    before = step()
    wait_for(lambda: step() > before + 1)
    launcher.terminate()
    launcher.wait(timeout=120)


@pytest.mark.parametrize("flag", some(["--multi_gpu", "--cpu"]))
def test_launch_that_formed_no_process_group_is_refused(flag: str, project: Path) -> None:
    done = run(project, ACCELERATE, "launch", flag, "--num_processes", "2", "train.py")
    assert done.returncode != 0
    assert "train.py: 2 processes were requested" in done.stderr
    assert not (project / "outputs").exists()


def test_launcher_of_one_process_succeeds_and_passes_on_errors(project: Path) -> None:
    done = run(project, ACCELERATE, "launch", "train.py", "--max_steps", "2")
    assert done.returncode == 0, done.stderr
    missing = ["--valid_input", "data/none.csv", "--outdir", "other"]
    done = run(project, ACCELERATE, "launch", "-q", "train.py", *missing)
    assert done.stderr.splitlines()[-1].startswith("train.py: data/none.csv: no such file")
    assert "Traceback" not in done.stderr
