"""Save and load checkpoints: best/ for inference, last/ for resuming."""

import json
import sys
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from errors import RunError

from .adapter import holds_adapter
from .atomic import clean, publish, saving, write_file
from .averaging import WeightAverage
from .batches import Step
from .contract import ExampleSet, accepts_weights
from .distributed import RankGroup
from .optimizer_state import OptimizerState
from .predictor_config import PREDICTOR_FILE, PredictorConfig
from .staging import bytes_to_copy, free_memory, live_memory, stage, with_own_configs
from .state import OPTIMIZER_FILE, STATE_FILE, SavedRun, TrainState, to_json
from .strategy import Strategy

LOG_FILE = "log.json"


class Checkpointer:
    """Writes checkpoints and log.json into the output directory of a run, on the main rank.

    Every rank has to call the same methods.

    `last/` has the raw weights (not averaged), which must be in the model when `save` is called.
    `best/` has the average of the weights if the run computes one, otherwise the raw weights.

    A thread writes each save while training continues, except as described in `save`. On exit, the
    context manager waits for the latest save, even if the run fails.

    Attributes:
        on_published: Function that the thread calls after each save, with the names of the
            published folders: "last", or "best" and "last".

    Args:
        about: Function that returns the fields of `SavedRun` other than the state and the losses.
            It is called at each save, since each epoch may have other training data.
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
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._is_noted = False
        self.on_published: Callable[[Collection[str]], None] = lambda names: None

        def remove_remains() -> None:
            with saving(self.outdir, 0):
                clean(self.outdir)

        group.on_main(remove_remains)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        # If the run ends with another error, `join` has not raised the error of a failed save.
        # Print that error here.
        if self.has_failed and self._pending is not None:
            print(self._pending.exception(), file=sys.stderr)

    def save(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        describe: Callable[[Path], None] | None = None,
    ) -> None:
        """Save `last/` and log.json; if `describe` is given, also `best/`.

        Wait for the preceding save, copy the tensors into host memory, and let a thread write the
        copy. If the memory is too small for a copy, or if `save_pretrained` has no parameter
        `state_dict` for the copy, wait until the thread has written this save. `best/` is published
        before `last/`, so that `last/` never refers to a missing `best/`.

        Args:
            describe: Function that the thread calls to write README.md (with `--push_to_hub`, also
                loss.png) into the folder of `best/`.

        Raises:
            RunError: The preceding save failed, for example because the disk is full; or this save
                failed, if it was waited for.
        """
        self.join()
        scaler = self.accelerator.scaler
        state.scaler = scaler.state_dict() if scaler is not None else None
        settings = self._settings(state)
        log = to_json(state.log, indent=4)
        weights = self._gather(model)
        moments = self.strategy.optimizer_state(model, optimizer)
        best_weights = weights if describe is None else self._gather_best(model, weights)

        def start() -> None:
            is_copy = self._stage(model, optimizer, [weights, moments.tensors])
            write_model = self._model_writer(model, weights, settings)
            write_best_model = self._model_writer(model, best_weights, settings)

            def write_last(folder: Path) -> None:
                write_model(folder)
                moments.save(folder / OPTIMIZER_FILE)

            def write_best(folder: Path) -> None:
                write_best_model(folder)
                if describe is not None:
                    describe(folder)

            writers: dict[str, Callable[[Path], None]] = {}
            if describe is not None:
                writers["best"] = write_best
            writers["last"] = write_last
            size = _size(weights) * len(writers) + moments.nbytes
            self._pending = self._thread.submit(self._write, writers, log, size)
            if not is_copy:
                self._wait()

        self.group.on_main(start)

    @property
    def has_failed(self) -> bool:
        """Whether the latest save has failed; always False on ranks that do not write.

        `join` raises the error.
        """
        pending = self._pending
        return pending is not None and pending.done() and pending.exception() is not None

    def join(self) -> None:
        """Wait until the latest save is published.

        Raises:
            RunError: The save failed.
        """
        self.group.on_main(self._wait)

    def _wait(self) -> None:
        pending = self._pending
        self._pending = None
        if pending is not None:
            pending.result()

    def _write(self, writers: dict[str, Callable[[Path], None]], log: str, size: int) -> None:
        """Write and publish a save. Runs in the thread: use no collectives and no `TrainState`."""
        with saving(self.outdir, size):
            publish(self.outdir, writers)
            write_file(self.outdir / LOG_FILE, log)
        self.on_published(writers.keys())

    def _stage(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, parts: list[dict]
    ) -> bool:
        """Copy the tensors that training changes; return False if a copy is not possible."""
        bare = self.accelerator.unwrap_model(model)
        if not accepts_weights(bare):
            return False
        live = live_memory(model, optimizer)
        size = sum(bytes_to_copy(tensors.values(), live) for tensors in parts)
        if (free := free_memory()) < size:
            if not self._is_noted:
                tqdm.write(
                    f"{free:,} bytes of host memory are free, but a copy of the weights and the "
                    f"optimizer state needs {size:,}: without a copy, training waits for the save"
                )
            self._is_noted = True
            return False
        for tensors in parts:
            stage(tensors, live)
        return True

    def load(
        self,
        folder: Path,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
    ) -> None:
        """Load the state of the optimizer and of the gradient scaler, and write log.json.

        Load the weights of the model before calling this.

        Raises:
            RunError: optimizer.safetensors cannot be read or does not match the optimizer, or
                log.json cannot be written.
        """
        path = folder / OPTIMIZER_FILE
        try:
            loaded = OptimizerState.load(path)
            self.strategy.load_optimizer_state(model, optimizer, loaded)
        except KeyError as error:
            raise RunError(
                f"{path}: does not match the optimizer, for example at {error}; expected the "
                "model that was saved"
            ) from None
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        if self.group.is_main:
            with saving(self.outdir, 0):  # the run may have been killed before it wrote log.json
                write_file(self.outdir / LOG_FILE, to_json(state.log, indent=4))

    def save_bad_batch(self, model: torch.nn.Module, examples: ExampleSet, step: Step) -> str:
        """Save the weights without the update of a step, and the batch of the step: `bad_batch/`.

        With float16 on an accelerator, the weights may include updates of later steps.

        Returns:
            A sentence with their path, or with the reason why they could not be saved.
        """
        weights = self._gather(model)

        def write_all(folder: Path) -> None:
            self._model_writer(model, weights, {})(folder)
            batch = examples.batch(step.examples)
            tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
            save_file(tensors, folder / "batch.safetensors")
            about = {"epoch": step.epoch, "step": step.index, "examples": step.examples}
            write_file(folder / "batch.json", json.dumps(about))

        def write() -> None:
            with saving(self.outdir, _size(weights)):
                publish(self.outdir, {"bad_batch": write_all})

        try:
            self.join()
            self.group.on_main(write)
        except RunError as error:
            return str(error)
        return (
            f"{self.outdir}/bad_batch contains these examples, and the weights without the update "
            "of this step"
        )

    def _settings(self, state: TrainState) -> dict[str, str]:
        """Return the contents of training_state.json and predictor_config.json, by file name.

        Every rank has to call this.
        """
        losses = self.group.gather((state.train_loss, state.named_losses))
        saved = SavedRun(
            **self.about(),
            state=state,
            train_losses=[loss for loss, _ in losses],
            named_losses=[named for _, named in losses],
        )
        return {STATE_FILE: saved.to_text(), PREDICTOR_FILE: PredictorConfig.of(saved).to_text()}

    def _gather(self, model: torch.nn.Module) -> dict[str, Tensor]:
        """Gather on the main rank the weights to save; every rank has to call this."""
        if holds_adapter(self.accelerator.unwrap_model(model)):
            return self.strategy.trained_weights(model)
        return self.strategy.full_state_dict(model)

    def _gather_best(self, model: torch.nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gather the average of the weights on the main rank; without an average, return `weights`.

        The average is copied: `_gather` may return the parameters themselves, whose values change
        when the raw weights are restored.
        """
        if not self.average.exists:
            return weights
        with self.average.applied():
            return {k: tensor.to("cpu", copy=True) for k, tensor in self._gather(model).items()}

    def _model_writer(
        self, model: torch.nn.Module, weights: dict[str, Tensor], settings: dict[str, str]
    ) -> Callable[[Path], None]:
        """Return a function that writes the model, the tokenizer and the settings into a folder."""
        bare = with_own_configs(self.accelerator.unwrap_model(model, keep_torch_compile=False))
        files = self._tokenizer_files | {name: text.encode() for name, text in settings.items()}
        options = {"state_dict": weights} if accepts_weights(bare) else {}

        def write(folder: Path) -> None:
            # Pass a copy of the dict, since `save_pretrained` removes tensors from it.
            bare.save_pretrained(folder, **{name: dict(value) for name, value in options.items()})
            for name, content in files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(content)

        return write

    @cached_property
    def _tokenizer_files(self) -> dict[str, bytes]:
        """Contents of the tokenizer's files, by name; the thread must not use the tokenizer."""
        if self.tokenizer is None:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            paths = [path for path in Path(folder).rglob("*") if path.is_file()]
            return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _size(tensors: dict[str, Tensor]) -> int:
    """Return the total size in bytes."""
    return sum(tensor.nbytes for tensor in tensors.values())
