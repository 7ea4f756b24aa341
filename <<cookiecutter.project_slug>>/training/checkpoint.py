"""Save and load checkpoints: best/ for inference, last/ for resuming."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from errors import RunError

from .adapter import holds_adapter
from .atomic import clean, publish, saving, write_file
from .averaging import WeightAverage
from .batches import Step
from .contract import ExampleSet
from .distributed import RankGroup
from .optimizer_state import OptimizerState
from .state import OPTIMIZER_FILE, SavedRun, TrainState, to_json
from .strategy import Strategy

LOG_FILE = "log.json"


class Checkpointer:
    """The output directory of a run. Every rank calls the same methods; the main one writes.

    Args:
        about: Returns the fields of `SavedRun` other than the state. It is called at each save,
            since the data may have changed with the epoch.
    """

    def __init__(
        self,
        group: RankGroup,
        strategy: Strategy,
        average: WeightAverage,
        tokenizer: PreTrainedTokenizerBase | None,
        outdir: Path,
        about: Callable[[], dict[str, Any]],
    ):
        self.accelerator = strategy.accelerator
        self.group = group
        self.strategy = strategy
        self.average = average
        self.tokenizer = tokenizer
        self.about = about
        self.outdir = outdir

        def remove_remains() -> None:
            with saving(self.outdir, 0):
                clean(self.outdir)

        group.on_main(remove_remains)

    def save(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        describe: Callable[[Path], None] | None = None,
    ) -> None:
        """Save `last/` and log.json; with `describe`, also save `best/`.

        Call this with the raw weights in the model: they are saved in `last/`. If there is an
        average of the weights, it is saved in `best/`.
        `best/` is published first, so that `last/` never refers to a missing `best/`.

        Args:
            describe: Writes README.md and loss.png into `best/`.

        Raises:
            RunError: The disk is full, or another operation failed.
        """
        scaler = self.accelerator.scaler
        state.scaler = scaler.state_dict() if scaler is not None else None
        losses = self.group.gather((state.train_loss, state.named_losses))
        saved = SavedRun(
            **self.about(),
            state=state,
            train_losses=[loss for loss, _ in losses],
            named_losses=[named for _, named in losses],
        )
        weights = self._gather(model)
        moments = self.strategy.optimizer_state(model, optimizer)
        best_weights = weights
        if describe is not None and self.average.exists:
            best_weights = self._gather_average(model)

        def write_last(folder: Path) -> None:
            self._write_model(folder, model, weights)
            saved.write(folder)
            moments.save(folder / OPTIMIZER_FILE)

        def write_best(folder: Path) -> None:
            self._write_model(folder, model, best_weights)
            saved.write(folder)
            if describe is not None:
                describe(folder)

        writers: dict[str, Callable[[Path], None]] = {}
        if describe is not None:
            writers["best"] = write_best
        writers["last"] = write_last

        def write() -> None:
            size = _size(weights) * len(writers) + moments.nbytes
            with saving(self.outdir, size):
                publish(self.outdir, writers)
                self.write_log(state)

        self.group.on_main(write)

    def write_log(self, state: TrainState) -> None:
        write_file(self.outdir / LOG_FILE, to_json(state.log, indent=4))

    def load(
        self,
        folder: Path,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
    ) -> None:
        """Load the optimizer and the gradient scaler. Load the model first.

        Raises:
            RunError: The file is not the optimizer state of this model.
        """
        path = folder / OPTIMIZER_FILE
        try:
            loaded = OptimizerState.load(path)
            self.strategy.load_optimizer_state(model, optimizer, loaded)
        except KeyError as error:
            raise RunError(
                f"{path}: has a parameter {error} that the optimizer does not have; expected the "
                "model that was saved"
            ) from None
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        if self.group.is_main:
            with saving(self.outdir, 0):  # the run may have been killed before it wrote its log
                self.write_log(state)

    def save_bad_batch(self, model: torch.nn.Module, examples: ExampleSet, step: Step) -> str:
        """Save the weights before a step, and its batch, as `bad_batch/`.

        Returns:
            Their path, or the reason why they could not be saved.
        """
        weights = self._gather(model)

        def write_all(folder: Path) -> None:
            self._write_model(folder, model, weights)
            batch = examples.batch(step.examples)
            tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
            save_file(tensors, folder / "batch.safetensors")
            about = {"epoch": step.epoch, "step": step.index, "examples": step.examples}
            write_file(folder / "batch.json", json.dumps(about))

        def write() -> None:
            with saving(self.outdir, _size(weights)):
                publish(self.outdir, {"bad_batch": write_all})

        try:
            self.group.on_main(write)
        except RunError as error:
            return str(error)
        return f"{self.outdir}/bad_batch contains them and the weights before this step"

    def _gather(self, model: torch.nn.Module) -> dict[str, Tensor]:
        """Gather the weights to save on the main rank; every rank has to call this."""
        if holds_adapter(self.accelerator.unwrap_model(model)):
            return self.strategy.trained_weights(model)
        return self.strategy.full_state_dict(model)

    def _gather_average(self, model: torch.nn.Module) -> dict[str, Tensor]:
        """Gather the average of the weights on the main rank; every rank has to call this.

        The tensors are copies: `_gather` may return the parameters themselves, whose values change
        when the raw weights are restored.
        """
        with self.average.applied():
            return {k: tensor.to("cpu", copy=True) for k, tensor in self._gather(model).items()}

    def _write_model(
        self, folder: Path, model: torch.nn.Module, weights: dict[str, Tensor]
    ) -> None:
        bare = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        save = bare.save_pretrained
        if "state_dict" in inspect.signature(save).parameters:
            save(folder, state_dict=dict(weights))  # a copy: `save` empties the dict
        else:
            save(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def _size(tensors: dict[str, Tensor]) -> int:
    """In bytes."""
    return sum(tensor.nbytes for tensor in tensors.values())
