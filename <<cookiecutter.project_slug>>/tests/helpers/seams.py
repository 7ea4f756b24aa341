"""Patches for tests. They, and some tests, replace the functions and constants in this list.

If you rename one of them, or change how a function is called, update this file.

train.train_step(run, step)         called once per optimizer step
train.validate(run, report)         called once per validation
Strategy.gradient_sync              called once per micro-batch of training
Strategy.prepare                    called once, with the bare model
Task.forward                        called with each batch; the run uses the returned losses
Checkpointer.save                   called once per save, with the state to save
OutputFile.append                   called once per block of predictions
training.checkpoint.publish         writes a save in a thread, or bad_batch/ in the main thread
training.checkpoint.free_memory     called before the tensors of a save are copied
atomic._seal                        called by `publish` for each folder after its files are written
training.opening.start              creates the Accelerator
training.opening.largest_batch_size called once, with the model on its device
losses.READ_EVERY                   number of `LossMeter.update` calls per read, by device type
memory.NOT_PROBED                   device types on which batch sizes are not tested
signals.SAME_KEYSTROKE              seconds within which two signals count as one Ctrl-C

Each function of this file returns a context manager. To use it in another process, pass it to
`Launch` as `patch`.
"""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import torch

import train
import training.checkpoint
import training.opening
from training import atomic, losses, memory, signals
from training.batches import Step
from training.checkpoint import Checkpointer
from training.contract import Task
from training.output_file import OutputFile
from training.run import Run
from training.state import TrainState
from training.strategy import Strategy

LONG = 60.0  # maximum time that a blocked thread waits, in seconds


class Killed(BaseException):
    """Ends a run like SIGKILL, except that `finally` blocks and ends of `with` blocks still run."""


@contextmanager
def before_step(action: Callable[[Run, Step], None], rank: int | None = None) -> Iterator[None]:
    """Call `action` before each optimizer step, on one rank or, by default, on all ranks."""
    train_step = train.train_step

    def stepping(run: Run, step: Step) -> Any:
        if rank is None or run.group.rank == rank:
            action(run, step)
        return train_step(run, step)

    with mock.patch.object(train, "train_step", stepping):
        yield


@contextmanager
def killed_before_micro_batch(number: int) -> Iterator[None]:
    """Raise `Killed` before micro-batch `number` (0-based) of the run, possibly inside a step."""
    gradient_sync = Strategy.gradient_sync
    done = 0

    def counting(*args: Any, **named: Any) -> AbstractContextManager:
        nonlocal done
        if done == number:
            raise Killed
        done += 1
        return gradient_sync(*args, **named)

    with mock.patch.object(Strategy, "gradient_sync", counting):
        yield


@contextmanager
def killed_in_block(number: int) -> Iterator[None]:
    """Kill the process while it writes block `number` (0-based) of the predictions."""
    append = OutputFile.append
    done = 0

    def counting(output: OutputFile, rows: list[dict]) -> None:
        nonlocal done
        if done == number:
            with output.partial.open("a") as file:
                file.write('{"incomplete')
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        append(output, rows)

    with mock.patch.object(OutputFile, "append", counting):
        yield


@contextmanager
def killed_before_validation() -> Iterator[None]:
    with mock.patch.object(train, "validate", side_effect=Killed):
        yield


@contextmanager
def scores_replaced_by(values: list[dict[str, float]]) -> Iterator[None]:
    """Overwrite scores of each validation with the entries of the next dict in `values`."""
    validate = train.validate
    given = iter(values)

    def replacing(*args: Any) -> dict[str, float]:
        return {**validate(*args), **next(given)}

    with mock.patch.object(train, "validate", replacing):
        yield


@contextmanager
def nonfinite_step(how: str, rank: int, step: int, is_read_late: bool = False) -> Iterator[None]:
    """Make the loss or the gradient of one optimizer step NaN or infinite on one rank.

    Args:
        how: What is not finite: "loss" for the loss and its gradient, "gradient" for the gradient
            only, "loss alone" for the loss only.
        step: Index (0-based) of the optimizer step.
        is_read_late: Whether the run reads losses only after further steps, as on an accelerator.
    """
    forward = Task.forward
    is_bad = False

    def note(run: Run, _: Step) -> None:
        nonlocal is_bad
        is_bad = run.state.step == step

    def spoiling(*args: Any) -> Any:
        outputs, parts = forward(*args)
        loss = parts["loss"]
        if is_bad and torch.is_grad_enabled():
            if how == "loss":
                loss = loss * torch.inf
            elif how == "gradient":  # the gradient of the square root is infinite at 0
                loss = loss + (loss * 0).sqrt()
            else:
                loss = loss + torch.tensor(torch.nan)
        return outputs, {**parts, "loss": loss}

    interval = {"cpu": 4} if is_read_late else {}
    with (
        before_step(note, rank),
        mock.patch.object(Task, "forward", spoiling),
        mock.patch.dict(losses.READ_EVERY, interval),
    ):
        yield


@contextmanager
def signals_before_step(numbers: list[int], rank: int, step: int) -> Iterator[None]:
    """Make one rank send itself signals before optimizer step `step` (0-based)."""

    def send(run: Run, _: Step) -> None:
        if run.state.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    with before_step(send, rank):
        yield


@contextmanager
def signal_in_first_validation(number: int, rank: int) -> Iterator[None]:
    """Make one rank send itself a signal before it evaluates the first batch of each validation."""
    forward = Task.forward
    validate = train.validate
    is_due = False

    def validating(run: Run, *args: Any) -> Any:
        nonlocal is_due
        is_due = run.group.rank == rank
        return validate(run, *args)

    def sending(*args: Any) -> Any:
        nonlocal is_due
        if is_due:
            is_due = False
            os.kill(os.getpid(), number)
        return forward(*args)

    with (
        mock.patch.object(train, "validate", validating),
        mock.patch.object(Task, "forward", sending),
    ):
        yield


@contextmanager
def second_keystroke_in_save(number: int, step: int) -> Iterator[None]:
    """Send a signal before a step, and again at the start of the save that follows."""
    with (
        mock.patch.object(signals, "SAME_KEYSTROKE", 0.0),
        signals_before_step([number], 0, step),
        before_save(lambda *_: os.kill(os.getpid(), number), lambda s: s.step >= step),
    ):
        yield


@contextmanager
def before_save(
    action: Callable[..., None], condition: Callable[[TrainState], bool] = lambda _: True
) -> Iterator[None]:
    """Call `action(save)` before each save whose state meets the condition.

    Args:
        action: Function that is called after the preceding save is published. Its argument `save`
            is a function without arguments, which saves `last/` and `best/` and waits until the
            thread has written them.
    """
    save = Checkpointer.save

    def saving(self: Checkpointer, model: Any, optimizer: Any, state: Any, *more: Any) -> None:
        def attempt() -> None:
            save(self, model, optimizer, state, lambda folder: None)
            self.join()

        if condition(state):
            self.join()
            action(attempt)
        save(self, model, optimizer, state, *more)

    with mock.patch.object(Checkpointer, "save", saving):
        yield


@contextmanager
def first_best_written_after(step: int) -> Iterator[None]:
    """Make the first save of `best/` and `last/` wait until the run is at step `step`."""
    publish = atomic.publish
    is_there = threading.Event()

    def note(run: Run, _: Step) -> None:
        if run.state.step == step:
            is_there.set()

    def waiting(outdir: Any, writers: dict[str, Any]) -> None:
        if "best" in writers and not is_there.wait(LONG):
            raise TimeoutError("the run waited for the save to be written")
        publish(outdir, writers)

    with before_step(note), mock.patch.object(training.checkpoint, "publish", waiting):
        yield


@contextmanager
def killed_while_writing(step: int) -> Iterator[None]:
    """Kill the process before step `step`, when the second `last/` is written but not flushed."""
    seal = atomic._seal
    is_written = threading.Event()

    def kill(run: Run, _: Step) -> None:
        if run.state.step == step and is_written.wait(LONG):
            os.kill(os.getpid(), signal.SIGKILL)

    def hanging(folder: Any) -> None:
        if folder.name == "last.1.tmp":
            is_written.set()
            time.sleep(LONG)
        seal(folder)

    with before_step(kill), mock.patch.object(atomic, "_seal", hanging):
        yield


@contextmanager
def full_disk_at_save(number: int) -> Iterator[None]:
    """Make save `number` of `last/` (0-based) fail as on a full disk."""
    seal = atomic._seal

    def failing(folder: Any) -> None:
        if folder.name == f"last.{number}.tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seal(folder)

    with mock.patch.object(atomic, "_seal", failing):
        yield


@contextmanager
def memory_for(most: int, ranks: tuple[int, ...]) -> Iterator[None]:
    """Make some ranks run out of memory if a micro-batch has more than `most` examples."""
    forward = Task.forward
    probe = training.opening.largest_batch_size
    is_limited = False

    def probing(*args: Any) -> int:
        nonlocal is_limited
        is_limited = int(os.environ.get("RANK", 0)) in ranks
        return probe(*args)

    def bounded(task: Task, model: Any, batch: dict[str, Any], num_items: float) -> Any:
        size = len(next(value for value in batch.values() if isinstance(value, torch.Tensor)))
        if is_limited and model.training and size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(task, model, batch, num_items)

    with (
        mock.patch.object(memory, "NOT_PROBED", set()),
        mock.patch.object(training.opening, "largest_batch_size", probing),
        mock.patch.object(Task, "forward", bounded),
    ):
        yield


@contextmanager
def shards_announced() -> Iterator[None]:
    """Print the number of module classes to which FSDP2 was applied."""
    prepare = Strategy.prepare

    def announcing(*args: Any) -> Any:
        prepared = prepare(*args)
        names = {type(part).__name__ for part in prepared[0].modules()}
        print("SHARDED:", sum(name.startswith("FSDP") for name in names))
        return prepared

    with mock.patch.object(Strategy, "prepare", announcing):
        yield
