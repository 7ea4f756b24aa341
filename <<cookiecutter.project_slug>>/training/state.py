"""Position and history of a run, and `training_state.json`, in which they are saved."""

import json
import math
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from errors import RunError

MAX_POINTS = 1000  # maximum number of points of the curve
STATE_FILE = "training_state.json"
OPTIMIZER_FILE = "optimizer.safetensors"


@dataclass
class TrainState:
    """The state of the training loop, without the weights and the optimizer.

    Attributes:
        global_batch_size: Examples in a step, over all ranks; fixed when the run starts.
        total_steps: Optimizer steps of the full run.
        current_epoch: Index of the current epoch, which is the number of completed epochs.
        examples: Number of examples of the current epoch that have been used.
        step: Optimizer steps since the start of the run.
        scheduler_steps: Steps of the schedule, which does not step when float16 overflows.
        validated_step: Step of the latest validation.
        greater_is_better: Whether larger values of the metric for `best/` are better.
        min_valid_loss: Lowest validation loss so far.
        best: Scores of the validation at which `best/` was saved, and the log key of that
            validation. After `forget_best`: no scores, and the log key of the latest validation.
        train_loss: This rank's sum of the losses of the current epoch.
        named_losses: The same sums for further losses that the model returns, by name.
        train_items: Target items of the current epoch, or the sum of their weights, over all ranks.
        grad_norms: Sum and number of the gradient norms of the current epoch, without float16
            steps that overflow.
        scaler: State of the gradient scaler; None unless the run uses float16.
        predict_options: Arguments of `Predictor` that the latest validation chose: see
            `Scorer.predict_options`.
        curve: Step, loss, learning rate and gradient norm of logged steps, for loss.png.
        run_id: Name of the run for trackers, kept on resume.
        log: Content of log.json.
    """

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
    named_losses: dict[str, float] = field(default_factory=dict)
    train_items: float = 0
    grad_norms: tuple[float, int] = (0.0, 0)
    scaler: dict | None = None
    predict_options: dict[str, Any] = field(default_factory=dict)
    curve: list = field(default_factory=list)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    log: dict = field(default_factory=dict)

    @property
    def is_validated(self) -> bool:
        """Whether the latest step has been validated."""
        return self.validated_step == self.step

    @property
    def best_scores(self) -> dict[str, float]:
        """Losses and scores in `best`."""
        counts = ("epoch", "count")
        return {n: v for n, v in self.best.items() if n.rpartition("/")[2] not in counts}

    def is_stuck(self, patience: int | None) -> bool:
        """Return whether the latest `patience` validations had no improvement: early stopping."""
        if patience is None:
            return False
        epochs = list(self.log)
        since = epochs.index(self.best["epoch"]) + 1 if self.best.get("epoch") in epochs else 0
        return len(epochs) - since >= patience

    def forget_best(self) -> None:
        """Make the next validation the best so far.

        Early stopping counts only the validations after this call.
        """
        self.best = {"epoch": next(reversed(self.log), None)}

    def is_finished(self, patience: int | None) -> bool:
        """Return whether the run is complete.

        A run is complete if its latest step has been validated, and if `total_steps` is reached or
        early stopping applies.
        """
        is_last = self.step >= self.total_steps or self.is_stuck(patience)
        return is_last and self.is_validated

    def steps_to_validation(self, valid_steps: int | None) -> int:
        """Return the number of steps to the next validation.

        The validation at the end of each epoch is not considered, and may come earlier.
        """
        interval = valid_steps or self.total_steps
        since = self.step % interval
        if since == 0 and not self.is_validated:
            return 0
        return max(0, min(interval - since, self.total_steps - self.step))

    def advance(self, num_examples: int, num_items: float, was_skipped: bool) -> None:
        """Count an optimizer step."""
        self.step += 1
        self.examples += num_examples
        self.train_items += num_items
        self.scheduler_steps += not was_skipped

    def add_grad_norms(self, norms: Iterable[float]) -> None:
        """Add gradient norms one by one, so that the sum is the same after a resume."""
        total, count = self.grad_norms
        for norm in norms:
            total += norm
            count += 1
        self.grad_norms = total, count

    def add_curve_point(self, loss: float, lr: float, grad_norm: float) -> None:
        """Add a point to the curve, unless the point is too close to the previous one.

        If the curve is full, drop every second point.
        """
        spacing = self.curve[1][0] - self.curve[0][0] if len(self.curve) > 1 else 0
        if not self.curve or self.step - self.curve[-1][0] >= spacing:
            self.curve.append((self.step, loss, lr, grad_norm))
        if len(self.curve) > MAX_POINTS:
            self.curve = self.curve[::2]

    def record(
        self,
        train_log: dict,
        valid_log: dict,
        metric: str,
        *,
        seconds: float,
        speed: dict,
        epoch_size: int,
    ) -> bool:
        """Log a validation, and start the next epoch if the current epoch is complete.

        Args:
            metric: Name of the score by which `best/` is chosen.
            speed: Measurements of `Throughput`; like `seconds`, they differ between runs.
            epoch_size: Examples in the epoch.

        Returns:
            Whether the validation is the best so far.
        """
        name = f"Epoch {self.current_epoch}"
        is_complete = self.examples >= epoch_size
        if not is_complete and self.step < self.total_steps:
            name += f", step {self.step}"
        if name in self.log:  # the run had ended within this epoch, and was then extended
            self._rename(name, f"{name}, step {self.log[name]['step']}")
        total, count = self.grad_norms
        self.log[name] = {
            "train_log": train_log,
            "valid_log": valid_log,
            "grad_norm": total / count if count else None,
            "step": self.step,
            "seconds": round(seconds, 1),
            "speed": speed,
        }
        self.validated_step = self.step
        if is_complete:
            self.current_epoch += 1
            self.examples = 0
            self.train_items = 0
            self.grad_norms = (0.0, 0)
            self.train_loss = 0.0
            self.named_losses = {}
        loss = valid_log["loss"]
        # Comparisons with NaN are false: a NaN loss is never the lowest, nor a NaN score the best.
        if loss < (math.inf if self.min_valid_loss is None else self.min_valid_loss):
            self.min_valid_loss = loss
        sign = -1 if self.greater_is_better else 1
        best = self.best.get(metric)
        is_best = sign * valid_log[metric] < (math.inf if best is None else sign * best)
        if is_best:
            self.best = {"epoch": name, **valid_log}
        return is_best

    def _rename(self, key: str, new: str) -> None:
        """Rename a key of the log."""
        self.log = {new if name == key else name: entry for name, entry in self.log.items()}
        if self.best.get("epoch") == key:
            self.best["epoch"] = new


@dataclass(frozen=True)
class SavedRun:
    """Content of `training_state.json`.

    Attributes:
        args: Arguments of the run, by name.
        schema: Settings with which the data were read: see `TaskDataset.schema`.
        data: Number of training examples and fingerprints of the data.
        state: The state, as rank 0 saved it.
        train_losses, named_losses: `train_loss` and `named_losses` of each rank.
        base: Hash of the base model's weights; None without an adapter.
        commit: Commit of `--model_id` on the Hub when the run started; None for a folder.
    """

    args: dict[str, Any]
    schema: dict[str, Any]
    data: dict[str, Any]
    state: TrainState
    train_losses: list[float]
    named_losses: list[dict[str, float]]
    base: str | None = None
    commit: str | None = None

    @classmethod
    def read(cls, folder: Path) -> "SavedRun":
        """Read `training_state.json` of a checkpoint.

        Raises:
            RunError: The file is missing or invalid.
        """
        path = folder / STATE_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            known = {field.name for field in fields(TrainState)} & content.keys()
            state = TrainState(**{name: content[name] for name in known})
            state.best = _with_nan(state.best)
            # Earlier versions saved no gradient norms, and the fingerprint of only one validation
            # set.
            state.curve = [(*point, None)[:4] for point in state.curve]
            if not isinstance(valid := content["data"].get("valid", {}), dict):
                content["data"]["valid"] = {"": valid}
            losses = [float(loss) for loss in content["train_loss"]]
            named = content.get("named_losses") or [{} for _ in losses]
            return cls(
                args=content["args"],
                schema=content["schema"],
                data=content["data"],
                state=state,
                train_losses=losses,
                named_losses=named,
                base=content.get("base"),
                commit=content.get("commit"),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path}: not the state of a run ({error})") from None

    def to_text(self) -> str:
        content = {
            "args": self.args,
            "schema": self.schema,
            "data": self.data,
            "base": self.base,
            "commit": self.commit,
            **asdict(self.state),
            "train_loss": self.train_losses,
            "named_losses": self.named_losses,
        }
        return to_json(content, indent=2)

    def state_of(self, rank: int, num_ranks: int) -> TrainState:
        """Return the state of a rank of the resumed run.

        The sums of losses are kept per rank, so that rounding is the same after a resume. If the
        number of ranks has changed, rank 0 gets the total of the sums, and the other ranks get 0.
        """
        losses = self.train_losses
        named = self.named_losses
        if len(losses) != num_ranks:
            names = {name for values in named for name in values}
            total = {name: math.fsum(v.get(name, 0.0) for v in named) for name in names}
            losses = [math.fsum(losses)] + [0.0] * (num_ranks - 1)
            named = [total] + [{} for _ in range(num_ranks - 1)]
        self.state.train_loss = losses[rank]
        self.state.named_losses = dict(named[rank])
        return self.state


def to_json(content: Any, indent: int) -> str:
    """Convert a value to JSON. NaN and infinity become null, since JSON has neither."""
    return json.dumps(_finite(content), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _with_nan(scores: dict) -> dict:
    return {name: math.nan if value is None else value for name, value in scores.items()}
