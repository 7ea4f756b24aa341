"""All that the loop has to remember besides the weights: saved as training_state.json."""

import argparse
import json
import math
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from . import RunError

FILE_NAME = "training_state.json"


@dataclass
class TrainingState:
    """Where a run stands.

    Attributes:
        args: The arguments of the run.
        data: What tells this training data from other data.
        global_batch_size: Examples in a step, over all processes.
        total_steps: Optimizer steps in the whole run.
        current_epoch: The epoch that the next step belongs to; as many are complete.
        examples: Examples of the current epoch that have been learned from: the position.
        step: Optimizer steps since the beginning.
        scheduler_steps: Those that moved the schedule; half precision may skip one.
        validated_step: The step of the latest validation.
        min_valid_loss: The lowest validation loss so far, the one of `best/`.
        best: What validation gave then, and in which epoch.
        train_loss: This process's sum of the losses in the current epoch.
        train_items: The label items, of all processes, that belong to it.
        scaler: The state of the loss scaler, in half precision.
        log: What log.json holds.
    """

    args: dict
    data: dict
    global_batch_size: int
    total_steps: int = 0
    current_epoch: int = 0
    examples: int = 0
    step: int = 0
    scheduler_steps: int = 0
    validated_step: int = 0
    min_valid_loss: float | None = None
    best: dict = field(default_factory=dict)
    train_loss: float = 0.0
    train_items: int = 0
    scaler: dict | None = None
    log: dict = field(default_factory=dict)

    @property
    def is_stuck(self) -> bool:
        """Whether the loss has not become better in `patience` epochs."""
        patience, epochs = self.args["patience"], list(self.log)
        since = epochs.index(self.best["epoch"]) + 1 if self.best else 0
        return patience is not None and len(epochs) - since >= patience

    @property
    def is_over(self) -> bool:
        is_validated = self.validated_step == self.step
        return is_validated and (self.step >= self.total_steps or self.is_stuck)

    def advance(self, num_examples: int, num_items: int, was_skipped: bool) -> None:
        """Count an optimizer step."""
        self.step += 1
        self.examples += num_examples
        self.train_items += num_items
        self.scheduler_steps += not was_skipped

    def record(self, train_log: dict, valid_log: dict, seconds: float) -> bool:
        """Log the current epoch, and begin the next if it is complete.

        Returns:
            Whether the validation loss is the lowest so far.
        """
        epoch, loss = f"Epoch {self.current_epoch}", valid_log["loss"]
        self.log[epoch] = {
            "train_log": train_log,
            "valid_log": valid_log,
            "seconds": round(seconds, 1),
        }
        self.validated_step = self.step
        if self.examples >= self.data["examples"]:
            self.current_epoch += 1
            self.examples = self.train_items = 0
            self.train_loss = 0.0
        # Nothing is less than a loss that is not a number, and that is not less than anything.
        is_best = loss < (math.inf if self.min_valid_loss is None else self.min_valid_loss)
        if is_best:
            self.min_valid_loss, self.best = loss, {"epoch": epoch, **valid_log}
        return is_best

    def write(self, folder: Path, train_losses: list[float]) -> None:
        """Write the state of all processes, given the `train_loss` of each."""
        state = {**asdict(self), "train_loss": train_losses}
        text = json.dumps(state, indent=2, ensure_ascii=False)
        (folder / FILE_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, process_index: int = 0, num_processes: int = 1) -> "TrainingState":
        """Read what `write` wrote, as one of any number of processes.

        Raises:
            RunError: it is something else.
        """
        try:
            state = cls(**json.loads((folder / FILE_NAME).read_text(encoding="utf-8")))
            losses: list[float] = list(state.train_loss)  # type: ignore[call-overload]
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{folder / FILE_NAME}: not the state of a run ({error})") from None
        if len(losses) != num_processes:
            losses = [math.fsum(losses)] + [0.0] * (num_processes - 1)
        state.train_loss = losses[process_index]
        return state


def open_state(args: argparse.Namespace, dataset, accelerator: Accelerator) -> TrainingState:
    """Begin a run, or take up the one in `args.restore_dir` as it stands.

    The global batch of a run stays what it was at its beginning, however many processes it goes on
    with: only how it is cut into forward passes changes.

    Raises:
        RunError: the run stands inside an epoch, and its data have changed.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    lengths = np.ascontiguousarray(dataset.lengths, dtype=np.int64)
    data = {"examples": len(dataset), "lengths_crc32": zlib.crc32(lengths)}
    if args.restore_dir is None:
        state = TrainingState({}, data, args.batch_size * args.accumulation * world)
    else:
        state = TrainingState.read(Path(args.restore_dir), rank, world)
    if state.examples and state.data != data:
        raise RunError(
            f"{args.train_input}: not the data that epoch {state.current_epoch} began with "
            f"({len(dataset)} examples, then {state.data['examples']}); expected the same file"
        )
    state.data = data
    state.args = {name: value for name, value in vars(args).items() if name != "restore_dir"}
    steps_per_epoch = -(-len(dataset) // state.global_batch_size)
    state.total_steps = args.max_steps or args.epochs * steps_per_epoch
    return state
