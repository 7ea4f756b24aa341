"""All that the loop has to remember besides the weights: saved as training_state.json."""

import argparse
import json
import math
import uuid
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from errors import RunError

MAX_POINTS = 1000  # of the curve
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
        greater_is_better: Whether that is so of the score that `best/` is chosen by.
        min_valid_loss: The lowest validation loss so far.
        best: What validation gave when `best/` was saved, and its name in the log.
        train_loss: This process's sum of the losses in the current epoch.
        train_items: The label items, of all processes, that belong to it.
        scaler: The state of the loss scaler, in half precision.
        curve: Steps, and the loss and the learning rate then: what loss.png shows between epochs.
        run_id: The name of the run for trackers, the same after it was resumed.
        log: What log.json holds.
        schema: How the data were read: see `model/dataset.py`.
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
    greater_is_better: bool = False
    min_valid_loss: float | None = None
    best: dict = field(default_factory=dict)
    train_loss: float = 0.0
    train_items: int = 0
    scaler: dict | None = None
    curve: list = field(default_factory=list)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    log: dict = field(default_factory=dict)
    schema: dict = field(default_factory=dict)

    @property
    def is_stuck(self) -> bool:
        """Whether `patience` validations have brought nothing better."""
        patience, epochs = self.args["patience"], list(self.log)
        since = epochs.index(self.best["epoch"]) + 1 if self.best else 0
        return patience is not None and len(epochs) - since >= patience

    @property
    def is_over(self) -> bool:
        is_validated = self.validated_step == self.step
        return is_validated and (self.step >= self.total_steps or self.is_stuck)

    @property
    def steps_to_validation(self) -> int:
        """Optimizer steps until the next validation; the end of the epoch may come before."""
        is_validated = self.validated_step == self.step
        every = self.args["valid_steps"] or self.total_steps
        left = -self.step % every or (every if is_validated else 0)
        return min(left, self.total_steps - self.step)

    def take_up(self, dataset) -> None:
        """Learn from these data from here on.

        Raises:
            RunError: the epoch has begun with others.
        """
        lengths = np.ascontiguousarray(dataset.lengths, dtype=np.int64)
        data = {"examples": len(dataset), "lengths_crc32": zlib.crc32(lengths.data)}
        if self.examples and self.data != data:
            raise RunError(
                f"{self.args['train_input']}: not the data that epoch {self.current_epoch} began "
                f"with ({len(dataset)} examples, then {self.data['examples']}); expected the same"
            )
        self.data, self.schema = data, dataset.schema

    def advance(self, num_examples: int, num_items: int, was_skipped: bool) -> None:
        """Count an optimizer step."""
        self.step += 1
        self.examples += num_examples
        self.train_items += num_items
        self.scheduler_steps += not was_skipped

    def note(self, loss: float, lr: float) -> None:
        """Remember a step for the curve; of many steps, evenly, only some."""
        spacing = self.curve[1][0] - self.curve[0][0] if len(self.curve) > 1 else 0
        if not self.curve or self.step - self.curve[-1][0] >= spacing:
            self.curve.append((self.step, loss, lr))
        if len(self.curve) > MAX_POINTS:
            self.curve = self.curve[::2]

    def record(self, train_log: dict, valid_log: dict, seconds: float) -> bool:
        """Log a validation, and begin the next epoch if this one is complete.

        Returns:
            Whether the validation is the best so far.
        """
        name, loss = f"Epoch {self.current_epoch}", valid_log["loss"]
        is_complete = self.examples >= self.data["examples"]
        if not is_complete and self.step < self.total_steps:
            name += f", step {self.step}"
        logs = {"train_log": train_log, "valid_log": valid_log}
        self.log[name] = {**logs, "step": self.step, "seconds": round(seconds, 1)}
        self.validated_step = self.step
        if is_complete:
            self.current_epoch += 1
            self.examples = self.train_items = 0
            self.train_loss = 0.0
        # Nothing is less than a number that is none, and that is not less than anything.
        if loss < (math.inf if self.min_valid_loss is None else self.min_valid_loss):
            self.min_valid_loss = loss
        metric, sign = self.args["metric_for_best_model"], -1 if self.greater_is_better else 1
        is_best = sign * valid_log[metric] < sign * self.best.get(metric, sign * math.inf)
        if is_best:
            self.best = {"epoch": name, **valid_log}
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


def open_state(
    args: argparse.Namespace, dataset, accelerator: Accelerator, scores: dict[str, bool]
) -> TrainingState:
    """Begin a run, or take up the one in `args.restore_dir` as it stands.

    The global batch of a run stays what it was at its beginning, however many processes it goes on
    with: only how it is cut into forward passes changes.

    Args:
        scores: What validation gives beside the loss: the name of each, and whether more is better.

    Raises:
        RunError: the run stands inside an epoch, and its data have changed; or it is to be judged
            by a score that validation does not give.
    """
    directions = {"loss": False, **scores}
    if (metric := args.metric_for_best_model) not in directions:
        known = ", ".join(directions)
        raise RunError(f"--metric_for_best_model {metric}: no such score; expected one of {known}")
    rank, world = accelerator.process_index, accelerator.num_processes
    if args.restore_dir is None:
        state = TrainingState({}, {}, args.batch_size * args.accumulation * world)
    else:
        state = TrainingState.read(Path(args.restore_dir), rank, world)
    state.args = {name: value for name, value in vars(args).items() if name != "restore_dir"}
    state.take_up(dataset)
    state.greater_is_better = directions[metric]
    steps_per_epoch = -(-len(dataset) // state.global_batch_size)
    state.total_steps = args.max_steps or args.epochs * steps_per_epoch
    return state
