"""A signal to one process or to all processes stops a run, which can be resumed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

import train
from helpers import seams
from helpers.assertions import assert_bit_identical, read_state
from helpers.processes import STOPPED, TIMEOUT, Launch
from training import signals

pytestmark = pytest.mark.proof


def resume(arguments: list[str], tmp_path: Path, processes: int = 1) -> None:
    Launch([*arguments, "--restore_dir", "auto"], tmp_path / "resumed", processes).expect()


def start_endless(arguments: list[str], tmp_path: Path, processes: int) -> Launch:
    """Start a run that would take hours, and wait for its first save."""
    endless = [*arguments, "--epochs", "10000", "--save_steps", "1"]
    run = Launch(endless, tmp_path / "output", processes)
    until = time.monotonic() + TIMEOUT
    while not (tmp_path / "run" / "last").exists():
        assert time.monotonic() < until, run.output()
        time.sleep(0.01)
    return run


@pytest.mark.parametrize(
    ("name", "processes", "rank"),
    [
        *(("SIGTERM", processes, rank) for processes, rank in ((1, 0), (2, 0), (2, 1))),
        *((name, 1, 0) for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")),
    ],
)
def test_signal_to_one_process_stops_all(
    name, processes, rank, arguments, steps, tmp_path, uninterrupted
):
    arguments += ["--batch_size", str(8 // processes)]
    patch = partial(seams.signals_before_step, [signal.Signals[name]], rank, steps + 1)
    output = Launch(arguments, tmp_path / "output", processes, patch).expect(STOPPED)
    sentence = f"stopped by {name} and saved; resume with --restore_dir {tmp_path}/run/last"
    assert output.count(sentence) == 1
    assert "Traceback" not in output
    state = read_state(tmp_path / "run" / "last")
    assert steps + 2 <= state["step"] <= steps + 3
    resume(arguments, tmp_path, processes)
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments, processes))


@pytest.mark.parametrize(("processes", "rank"), [(1, 0), (2, 1)])
def test_signal_during_validation_stops_the_run_before_the_validation_ends(
    processes, rank, arguments, steps, tmp_path, uninterrupted
):
    arguments += ["--eval_batch_size", "2", "--batch_size", str(8 // processes)]
    patch = partial(seams.signal_in_first_validation, signal.SIGTERM, rank)
    Launch(arguments, tmp_path / "output", processes, patch).expect(STOPPED)
    state = read_state(tmp_path / "run" / "last")
    assert state["step"] == steps
    assert state["log"] == {}
    resume(arguments, tmp_path, processes)
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments, processes))


@pytest.mark.parametrize(("name", "processes"), [("SIGINT", 2), ("SIGHUP", 1)])
def test_signal_to_all_processes_and_loader_workers_stops_and_saves(
    name, processes, arguments, tmp_path
):
    """Ctrl-C, a closed terminal and Slurm send a signal to all processes of a run."""
    arguments += ["--num_workers", "1", "--batch_size", str(8 // processes)]
    run = start_endless(arguments, tmp_path, processes)
    ranks = [psutil.Process(process.pid) for process in run.processes]
    workers = [child for rank in ranks for child in rank.children(recursive=True)]
    assert len(workers) >= processes
    for process in [*workers, *ranks]:
        process.send_signal(signal.Signals[name])
    output = run.expect(STOPPED)
    assert f"stopped by {name} and saved" in output
    assert "Traceback" not in output
    psutil.wait_procs(workers, timeout=30)
    assert not any(worker.is_running() for worker in workers)
    step = read_state(tmp_path / "run" / "last")["step"]
    more = ["--max_steps", str(step + 2), "--num_workers", "0"]  # workers take seconds to start
    resume([*arguments, *more], tmp_path, processes)
    assert read_state(tmp_path / "run" / "last")["step"] == step + 2


def test_two_signals_of_one_ctrl_c_count_as_one(arguments, steps, tmp_path):
    patch = partial(seams.signals_before_step, [signal.SIGINT, signal.SIGINT], 0, steps + 1)
    Launch(arguments, tmp_path / "output", patch=patch).expect(STOPPED)


def test_second_ctrl_c_exits_at_once_and_keeps_the_previous_save(
    arguments, steps, tmp_path, uninterrupted
):
    patch = partial(seams.second_keystroke_in_save, signal.SIGINT, steps + 1)
    output = Launch(arguments, tmp_path / "output", patch=patch).expect(-signal.SIGINT)
    assert "Traceback" not in output
    assert read_state(tmp_path / "run" / "last")["step"] == steps
    resume(arguments, tmp_path)
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments))


def test_signal_handlers_are_restored_after_a_run(arguments):
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    train.main([*arguments, "--max_steps", "1"])
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_run_outside_the_main_thread_is_bit_identical(arguments, tmp_path, uninterrupted):
    """Python allows signal handlers in the main thread only."""
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    thread = threading.Thread(target=train.main, args=(arguments,))
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments))


@contextmanager
def started_by_nohup(step: int) -> Iterator[None]:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with seams.signals_before_step([signal.SIGHUP], 0, step):
        yield


def test_run_started_by_nohup_ignores_sighup(arguments, steps, tmp_path, uninterrupted):
    Launch(arguments, tmp_path / "output", patch=partial(started_by_nohup, steps + 1)).expect()
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments))


@pytest.mark.parametrize("rank", [0, 1])
def test_kill_of_one_process_ends_the_other_processes(rank, arguments, tmp_path):
    run = start_endless(arguments, tmp_path, 2)
    os.kill(run.processes[rank].pid, signal.SIGKILL)
    codes = run.wait()
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] not in (0, STOPPED)
