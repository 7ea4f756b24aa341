"""A run that is stopped from outside: by signals, by a death, by another run in its folder."""

import json
import os
import signal
import time
from contextlib import ExitStack
from functools import partial
from unittest import mock

import pytest
from outcome import assert_same
from real_runs import TIMEOUT, Run

import train
from errors import RunError
from training import interruption
from training.checkpoint import Checkpoints

STOPPED = 75


def send(signals: list[int], rank: int, step: int, stack: ExitStack) -> None:
    """Let one process send itself signals in front of an optimizer step."""
    if os.environ.get("RANK", "0") == str(rank):
        take_step, steps = train.take_step, iter(range(1000))

        def signalled(*arguments):
            if next(steps) + 1 == step:
                for number in signals:
                    os.kill(os.getpid(), number)
            return take_step(*arguments)

        stack.enter_context(mock.patch.object(train, "take_step", signalled))


def send_in_validation(rank: int, stack: ExitStack) -> None:
    if os.environ.get("RANK", "0") == str(rank):
        update, first = train.Scores.update, iter([True])

        def signalled(*arguments):
            if next(first, False):
                os.kill(os.getpid(), signal.SIGTERM)
            return update(*arguments)

        stack.enter_context(mock.patch.object(train.Scores, "update", signalled))


def press_twice(step: int, stack: ExitStack) -> None:
    """Ctrl-C in front of a step, and again in the save that it asked for."""
    stack.enter_context(mock.patch.object(interruption, "SAME_KEYSTROKE", 0.0))
    send([signal.SIGINT], 0, step, stack)
    save = Checkpoints.save

    def signalled(self, *arguments):
        if self.state.step >= step:
            os.kill(os.getpid(), signal.SIGINT)
        save(self, *arguments)

    stack.enter_context(mock.patch.object(Checkpoints, "save", signalled))


def go_on(arguments, tmp_path, processes: int = 1) -> None:
    resumed = Run([*arguments, "--restore_dir", "auto"], tmp_path / "resumed", processes)
    assert resumed.wait() == [0] * processes, resumed.output()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
@pytest.mark.parametrize(("processes", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_a_signal_to_one_process_stops_all(
    name, processes, rank, arguments, steps, tmp_path, left_alone
):
    arguments += ["--batch_size", str(8 // processes)]
    patch = partial(send, [signal.Signals[name]], rank, steps + 2)
    run = Run(arguments, tmp_path / "output", processes, patch)
    assert run.wait() == [STOPPED] * processes, run.output()
    sentence = f"stopped by {name} and saved; go on with --restore_dir {tmp_path}/run/last"
    assert run.output().count(sentence) == 1
    assert "Traceback" not in run.output()
    state = json.loads((tmp_path / "run" / "last" / "training_state.json").read_text())
    assert steps + 2 <= state["step"] <= steps + 3
    go_on(arguments, tmp_path, processes)
    assert_same(tmp_path / "run", left_alone(arguments, processes))


@pytest.mark.parametrize(("processes", "rank"), [(1, 0), (2, 1)])
def test_a_signal_in_validation_does_not_wait_for_its_end(
    processes, rank, arguments, steps, tmp_path, left_alone
):
    arguments += ["--eval_batch_size", "2", "--batch_size", str(8 // processes)]
    run = Run(arguments, tmp_path / "output", processes, partial(send_in_validation, rank))
    assert run.wait() == [STOPPED] * processes, run.output()
    state = json.loads((tmp_path / "run" / "last" / "training_state.json").read_text())
    assert state["step"] == steps
    assert state["log"] == {}
    go_on(arguments, tmp_path, processes)
    assert_same(tmp_path / "run", left_alone(arguments, processes))


def test_one_keystroke_that_comes_twice_is_one(arguments, steps, tmp_path):
    patch = partial(send, [signal.SIGINT, signal.SIGINT], 0, steps + 2)
    run = Run(arguments, tmp_path / "output", patch=patch)
    assert run.wait() == [STOPPED]


def test_a_second_keystroke_stops_at_once_and_loses_no_save(arguments, steps, tmp_path, left_alone):
    run = Run(arguments, tmp_path / "output", patch=partial(press_twice, steps + 2))
    assert run.wait() == [-signal.SIGINT]
    assert "Traceback" not in run.output()
    state = json.loads((tmp_path / "run" / "last" / "training_state.json").read_text())
    assert state["step"] == steps
    go_on(arguments, tmp_path)
    assert_same(tmp_path / "run", left_alone(arguments))


def test_handlers_of_signals_are_given_back(arguments):
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    train.main([*arguments, "--max_steps", "1"])
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before


def started(arguments, tmp_path, processes: int) -> Run:
    """A run that would go on for hours, and has saved."""
    endless = [*arguments, "--epochs", "10000", "--save_steps", "1"]
    run = Run(endless, tmp_path / "output", processes)
    until = time.monotonic() + TIMEOUT
    while not (tmp_path / "run" / "last").exists():
        assert time.monotonic() < until, run.output()
        time.sleep(0.01)
    return run


@pytest.mark.parametrize("rank", [0, 1])
def test_the_death_of_a_process_ends_the_others(rank, arguments, tmp_path):
    run = started(arguments, tmp_path, 2)
    run.processes[rank].kill()
    codes = run.wait()
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] not in (0, STOPPED)


def test_a_folder_is_for_one_run_at_a_time(arguments, tmp_path):
    run = started(arguments, tmp_path, 1)
    other = Run([*arguments, "--restore_dir", "auto"], tmp_path / "other")
    assert other.wait() == [2]
    assert f"process {run.processes[0].pid} on " in other.output()
    assert other.output().count("\n") == 1
    run.kill()
    go_on([*arguments, "--max_steps", "1"], tmp_path)  # the dead one is in nobody's way


def test_patience_ends_a_run_in_all_processes(arguments, tmp_path):
    arguments += ["--epochs", "9", "--patience", "2", "--lr", "0"]
    for processes in (1, 2):
        outdir = ["--outdir", str(tmp_path / f"run{processes}")]
        run = Run([*arguments, *outdir], tmp_path / f"output{processes}", processes)
        assert run.wait() == [0] * processes
        assert "Ended early: no better loss in 2 validations" in run.output()
        log = json.loads((tmp_path / f"run{processes}" / "log.json").read_text())
        assert list(log) == ["Epoch 0", "Epoch 1", "Epoch 2"]
    train.main(["--restore_dir", str(tmp_path / "run1" / "last"), "--patience", "3"])
    assert len(json.loads((tmp_path / "run1" / "log.json").read_text())) == 4


def test_automatic_restoring_begins_a_run_and_ends_it_once(arguments, tmp_path):
    arguments += ["--restore_dir", "auto"]
    train.main(arguments)
    manifest = (tmp_path / "run" / "last" / "manifest.json").read_bytes()
    train.main(arguments)  # over: nothing to do
    assert (tmp_path / "run" / "last" / "manifest.json").read_bytes() == manifest
    with pytest.raises(RunError, match="--restore_dir auto"):
        train.main(arguments[:-2])
