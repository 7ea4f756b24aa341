"""Saving and restoring a run: `best/` is to be used, `last/` is to go on from."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import PreTrainedTokenizerBase

from .files import clean, publish, write_file
from .progress import LossSum
from .state import TrainingState

OPTIMIZER = "optimizer.safetensors"


class Checkpoints:
    """The output folder of a run. All processes call the same methods; one writes."""

    def __init__(
        self,
        accelerator: Accelerator,
        outdir: Path,
        model: torch.nn.Module,
        optimizer: AcceleratedOptimizer,
        tokenizer: PreTrainedTokenizerBase,
        state: TrainingState,
        save_steps: int | None,
    ):
        self.accelerator = accelerator
        self.outdir = outdir
        self.model = model
        self.optimizer = optimizer.optimizer
        self.tokenizer = tokenizer
        self.state = state
        self.save_steps = save_steps
        if accelerator.is_main_process:
            clean(outdir)

    def save_if_due(self, losses: LossSum) -> None:
        """Save `last/` inside an epoch, every `save_steps` steps."""
        if self.save_steps and self.state.step % self.save_steps == 0:
            self.state.train_loss = losses.total()
            self.save()

    def save(self, is_best: bool = False) -> None:
        """Save `last/` and, before it, `best/`; and bring log.json up to date.

        In this order, so that a `last/` that knows of a best loss always has its `best/`.
        """
        state, scaler = self.state, self.accelerator.scaler
        state.scaler = scaler.state_dict() if scaler is not None else None
        train_losses = gather_object([state.train_loss])
        weights = self.accelerator.get_state_dict(self.model)
        optimizer_tensors = self._optimizer_tensors()

        def write_model(folder: Path) -> None:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            model.save_pretrained(folder, state_dict=dict(weights))  # it empties what it gets
            self.tokenizer.save_pretrained(folder)
            state.write(folder, train_losses)

        def write_all(folder: Path) -> None:
            write_model(folder)
            save_file(optimizer_tensors, folder / OPTIMIZER)

        if self.accelerator.is_main_process:
            if is_best:
                publish(self.outdir / "best", write_model)
            publish(self.outdir / "last", write_all, keep=1)
            write_file(self.outdir / "log.json", json.dumps(state.log, indent=4))
        self.accelerator.wait_for_everyone()

    def restore(self, folder: Path) -> None:
        """Load what `save` kept for going on; the model itself is loaded by `from_pretrained`."""
        tensors = load_file(folder / OPTIMIZER)
        # Names and hyperparameters of this run; the numbers are those of the checkpoint.
        state_dict = get_optimizer_state_dict(self.model, self.optimizer)
        state_dict["state"] = {
            name: {key: tensors[f"{name}/{key}"] for key in values}
            for name, values in state_dict["state"].items()
        }
        whole = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, self.optimizer, state_dict, options=whole)
        if self.accelerator.scaler is not None and self.state.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.state.scaler)

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """The optimizer's tensors, whole, by the names of their parameters; on one process only."""
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state_dict = get_optimizer_state_dict(self.model, self.optimizer, options=whole)
        return {
            f"{name}/{key}": torch.as_tensor(value).contiguous()
            for name, values in state_dict.get("state", {}).items()
            for key, value in values.items()
        }
