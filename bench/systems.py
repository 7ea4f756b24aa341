"""What is compared, and on which examples; and a rendered project as the first of it."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from processes import Recorder
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedModel, set_seed

SEED, LEARNING_RATE, MAX_LENGTH = 42, 1e-3, 48
GLOBAL_BATCH_SIZE = 8  # examples in a step
EPOCHS, STEPS_PER_EPOCH, SAVED_STEP, ACCUMULATION = 2, 6, 9, 2  # of a run that is killed


@dataclass(frozen=True)
class Fit:
    """A run of EPOCHS epochs that saves after SAVED_STEP steps, or its continuation.

    Attributes:
        folder: For its checkpoints and records.
        phase: Names its records.
        batch_size: Examples in a forward pass of one process.
        last_pass: The forward pass before which it is killed, if any.
        resume: Whether to go on from the checkpoint in `folder`.
    """

    folder: Path
    phase: str
    batch_size: int
    last_pass: int | None = None
    resume: bool = False


class Examples(torch.utils.data.Dataset):
    """The first examples of a data set: as they are, or cut to differing lengths.

    Has what the template's loop asks of a data set, and for the others each example's number.
    """

    def __init__(self, dataset: Any, count: int, cut: bool):
        lengths = np.random.default_rng(SEED).integers(4, MAX_LENGTH, count)
        self.examples = [dataset[index] for index in range(count)]
        self.lengths, self.num_items = dataset.lengths[:count], dataset.num_items[:count]
        self._collate = dataset.collate
        if cut:
            self.lengths, self.num_items = lengths, lengths - 1
            self.examples = [
                {key: value[:length] for key, value in example.items()}
                for example, length in zip(self.examples, lengths, strict=True)
            ]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**self.examples[index], "ids": torch.tensor(index)}

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        # A data set may ask that its examples hold what it gave them, and no more.
        return self._collate([{k: v for k, v in e.items() if k != "ids"} for e in examples])

    def numbered(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {**self.collate(examples), "ids": torch.stack([e["ids"] for e in examples])}


def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """All tensors in one vector, in the order of their names."""
    return np.concatenate([tensors[name].detach().numpy().ravel() for name in sorted(tensors)])


def gradient_of(model: torch.nn.Module) -> np.ndarray:
    return flat({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


class System:
    """A way to train. Each method runs in a fresh process, or in several at once.

    Args:
        task: The task of the project and the sample.
        project: The project rendered for the task; all systems read their data by its code.
        sample: Holds train.jsonl, valid.jsonl and the base model, without and with dropout.
    """

    name: str

    def __init__(self, task: str, project: Path, sample: Path):
        self.task, self.project, self.sample = task, project, sample

    def dataset(self, part: str) -> Any:
        """Read a file of the sample by the project's own code."""
        if str(self.project) not in sys.path:
            sys.path.insert(0, str(self.project))
        from model.dataset import generate_dataset

        tokenizer = AutoTokenizer.from_pretrained(self.sample / "tiny")
        return generate_dataset(self.sample / f"{part}.jsonl", tokenizer, MAX_LENGTH)

    def examples(self, part: str, count: int) -> Examples:
        """Examples of differing lengths; blocks of text come all in one length."""
        return Examples(self.dataset(part), count, cut=self.task == "causal_lm")

    def model(self, dataset: Any, base: str = "tiny") -> PreTrainedModel:
        """The model with its first weights, always the same."""
        raise NotImplementedError

    def gradient(self, batch_size: int, accumulation: int) -> np.ndarray:
        """The gradient of one step over a global batch."""
        raise NotImplementedError

    def valid_losses(self, batch_sizes: list[int], count: int) -> list[float]:
        """The validation loss by evaluation batch size."""
        raise NotImplementedError

    def fit(self, fit: Fit) -> np.ndarray:
        """Train; the final weights."""
        raise NotImplementedError


class Ours(System):
    """A project as it was rendered."""

    name = "hf-template"

    def model(self, dataset: Any, base: str = "tiny") -> PreTrainedModel:
        from model.configuration import ModelConfig
        from model.modeling import Model

        set_seed(SEED)
        return Model(ModelConfig(str(self.sample / base), **dataset.schema))

    def gradient(self, batch_size: int, accumulation: int) -> np.ndarray:
        examples = self.examples("train", GLOBAL_BATCH_SIZE)
        model = self.model(self.dataset("train"))
        from train import train_step
        from training.batches import Batches

        accelerator = Accelerator()
        prepared = accelerator.prepare(model)
        batches = Batches(examples, accelerator, batch_size, GLOBAL_BATCH_SIZE, seed=SEED)
        train_step(accelerator, prepared, batches.epoch())
        return gradient_of(model)

    def valid_losses(self, batch_sizes: list[int], count: int) -> list[float]:
        examples, model = self.examples("valid", count), self.model(self.dataset("train"))
        from model.metrics import Scores
        from train import valid
        from training.batches import Batches

        accelerator = Accelerator()
        scores = Scores(
            model, AutoTokenizer.from_pretrained(self.sample / "tiny"), accelerator.device
        )
        model = accelerator.prepare(model)
        return [
            valid(accelerator, model, Batches(examples, accelerator, size), scores, 0)["loss"]
            for size in batch_sizes
        ]

    def fit(self, fit: Fit) -> np.ndarray:
        self.dataset("train")
        import train

        record, train_step = Recorder(fit.folder, fit.phase, fit.last_pass), train.train_step

        def recording(accelerator: Any, model: Any, micro_batches: Iterator) -> Any:
            def noted() -> Iterator:
                for inputs, micro in micro_batches:
                    record(micro.indices if micro.weight else [])
                    yield inputs, micro

            return train_step(accelerator, model, noted())

        train.train_step = recording
        if fit.resume:
            train.main(["--restore_dir", str(fit.folder / "last")])
        else:
            options = {
                "train_input": self.sample / "train.jsonl",
                "valid_input": self.sample / "valid.jsonl",
                "model_id": self.sample / "tiny-dropout",
                "max_len": MAX_LENGTH,
                "outdir": fit.folder,
                "epochs": EPOCHS,
                "save_steps": SAVED_STEP,
                "batch_size": fit.batch_size,
                "accumulation": ACCUMULATION,
                "lr": LEARNING_RATE,
                "seed": SEED,
                "num_workers": 0,
            }
            train.main([f"--{name}={value}" for name, value in options.items()])
        return flat(load_file(fit.folder / "last" / "model.safetensors"))
