"""Saving and restoring a run: `best/` is to be used, `last/` is to go on from."""

import json
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from errors import RunError
from scaling.epochs import Epochs
from scaling.optimizer_state import load_optimizer, optimizer_tensors
from scaling.sharding import whole_state_dict

from .batches import MicroBatch
from .files import clean, publish, saving, write_file
from .interruption import Interruption
from .losses import LossSum
from .state import TrainingState

OPTIMIZER = "optimizer.safetensors"


class Checkpoints:
    """The output folder of a run. All processes call the same methods; one writes.

    Args:
        report: Its `describe(folder)` adds what people read to a `best/` that is being written.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        interruption: Interruption,
        state: TrainingState,
        epochs: Epochs,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        tokenizer: PreTrainedTokenizerBase,
        report,
    ):
        self.accelerator = accelerator
        self.interruption, self.peers = interruption, interruption.peers
        self.state = state
        self.outdir = Path(state.args["outdir"])
        self.epochs = epochs
        self.model = model
        self.optimizer = optimizer
        self.tokenizer, self.report = tokenizer, report
        if self.peers.is_main:
            clean(self.outdir)

    def after_step(self, losses: LossSum) -> None:
        """Save `last/` inside an epoch: every `save_steps` steps, and when the run is to stop.

        Raises:
            Stopped: a process was signalled.
            RunError: see `sum_up` and `save`.
        """
        is_to_stop = self.interruption.is_due(losses.bad is not None)
        save_steps = self.state.args["save_steps"]
        if is_to_stop or (save_steps and self.state.step % save_steps == 0):
            self.sum_up(losses)
            self.save()
        if is_to_stop:
            self.interruption.stop(str(self.outdir))

    def stop_if_due(self) -> None:
        """Save `last/` as it stands before the validation, if the run is to stop now.

        Raises:
            Stopped: a process was signalled.
        """
        if self.interruption.is_due():
            self.save()
            self.interruption.stop(str(self.outdir))

    def sum_up(self, losses: LossSum) -> float:
        """Take the losses of the epoch into the state; give their sum over all processes.

        Raises:
            RunError: one was not finite; what reproduces it has been saved as `bad_batch/`.
        """
        self.state.train_loss = losses.total()
        reports = self.peers.gather((self.state.train_loss, losses.bad))
        if bad := [batch for _, batch in reports if batch is not None]:
            self._stop_before(min(bad, key=lambda batch: batch.seed))
        return math.fsum(loss for loss, _ in reports)

    def save(self, is_best: bool = False) -> None:
        """Save `last/` and, before it, `best/`; and bring log.json up to date.

        Published in this order, so that a `last/` that knows of a best loss always has its `best/`.

        Raises:
            RunError: there is no room, or something else prevents it.
        """
        state, scaler = self.state, self.accelerator.scaler
        state.scaler = scaler.state_dict() if scaler is not None else None
        train_losses = self.peers.gather(state.train_loss)
        weights = whole_state_dict(self.accelerator, self.model)
        moments = optimizer_tensors(self.model, self.optimizer)

        def write_model(folder: Path) -> None:
            self._write_model(folder, weights)
            state.write(folder, train_losses)

        def write_all(folder: Path) -> None:
            write_model(folder)
            save_file(moments, folder / OPTIMIZER)

        def write_best(folder: Path) -> None:
            write_model(folder)
            self.report.describe(folder)

        contents: dict = {"best": write_best} if is_best else {}
        contents["last"] = write_all

        def write() -> None:
            with saving(self.outdir, _size(weights) * len(contents) + _size(moments)):
                publish(self.outdir, contents)
                self.write_log()

        self.peers.main_does(write)

    def write_log(self) -> None:
        write_file(self.outdir / "log.json", json.dumps(self.state.log, indent=4))

    def restore(self, folder: str | None) -> None:
        """Load what `save` kept for going on; the model itself is loaded by `from_pretrained`.

        Raises:
            RunError: the optimizer's file is not that of this model.
        """
        if folder is None:
            return
        load_optimizer(self.model, self.optimizer, Path(folder, OPTIMIZER))
        if self.accelerator.scaler is not None and self.state.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.state.scaler)
        if self.peers.is_main:
            self.write_log()  # the run may have been killed between its last save and this

    def _stop_before(self, bad: MicroBatch) -> None:
        weights = whole_state_dict(self.accelerator, self.model)
        _, epoch, step, *_ = bad.seed
        examples = bad.global_batch

        def write_all(aside: Path) -> None:
            self._write_model(aside, weights)
            batch = self.epochs.collate(examples)
            save_file(batch, aside / "batch.safetensors")
            about = {"epoch": epoch, "step": step, "examples": examples}
            write_file(aside / "batch.json", json.dumps(about))

        def write() -> None:
            with saving(self.outdir, _size(weights)):
                publish(self.outdir, {"bad_batch": write_all})

        try:
            self.peers.main_does(write)
            place = f"{self.outdir}/bad_batch holds them, and the weights before this step"
        except RunError as error:
            place = str(error)
        names = ", ".join(map(str, examples[:8])) + ", ..." * (len(examples) > 8)
        raise RunError(
            f"epoch {epoch}, step {step}: the loss or its gradient is not a finite number, on the "
            f"examples {names} (the first is 0); {place}"
        )

    def _write_model(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        model.save_pretrained(folder, state_dict=dict(weights))  # it empties what it gets
        self.tokenizer.save_pretrained(folder)


def _size(tensors: dict[str, torch.Tensor]) -> int:
    """In bytes."""
    return sum(tensor.nbytes for tensor in tensors.values())
