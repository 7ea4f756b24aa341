"""The interface of the compared systems, their examples, and the system of this template."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processes import Recorder
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedModel, set_seed

SEED, LEARNING_RATE, MAX_LENGTH = 42, 1e-3, 48
GLOBAL_BATCH_SIZE = 8  # examples in a step
EPOCHS, STEPS_PER_EPOCH, SAVED_STEP, ACCUMULATION = 2, 6, 9, 2  # of a run by `fit`


@dataclass(frozen=True)
class Fit:
    """A run of EPOCHS epochs that saves after SAVED_STEP steps, or the run that resumes it.

    Attributes:
        folder: Folder for checkpoints and records.
        phase: Part of the file names of the records.
        batch_size: Number of examples in a forward pass of one process.
        last_pass: Number of forward passes after which each process is killed. Default: no kill.
        resume: Whether to resume from the checkpoint in `folder`.
    """

    folder: Path
    phase: str
    batch_size: int
    last_pass: int | None = None
    resume: bool = False


class Examples(torch.utils.data.Dataset):
    """The first examples of a data set, unchanged or truncated to different lengths.

    Objects of this class have the attributes that the template's loop reads. For the other systems,
    the collate function `numbered` adds the index of each example to a batch.
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
        # The collate function of a data set may reject additional keys.
        return self._collate([{k: v for k, v in e.items() if k != "ids"} for e in examples])

    def numbered(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batch = self.collate(examples)
        tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
        return {**tensors, "ids": torch.stack([e["ids"] for e in examples])}


def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """Return all tensors as one vector, in the order of their names."""
    return np.concatenate([tensors[name].detach().numpy().ravel() for name in sorted(tensors)])


def gradient_of(model: torch.nn.Module) -> np.ndarray:
    return flat({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


class System:
    """A system that trains a model.

    `gradient`, `valid_losses` and `fit` are each called in new processes.

    Args:
        task: Task of the project and of the sample.
        project: Project rendered for the task. All systems read the data with the project's code.
        sample: Folder with train.jsonl, valid.jsonl and two base models, without and with dropout.
    """

    name: str

    def __init__(self, task: str, project: Path, sample: Path):
        self.task, self.project, self.sample = task, project, sample

    def dataset(self, part: str) -> Any:
        """Read a file of the sample with the project's code."""
        if str(self.project) not in sys.path:
            sys.path.insert(0, str(self.project))
        from model.dataset import generate_dataset

        tokenizer = AutoTokenizer.from_pretrained(self.sample / "tiny")
        return generate_dataset(self.sample / f"{part}.jsonl", tokenizer, MAX_LENGTH)

    def examples(self, part: str, count: int) -> Examples:
        """Return the first examples. Those of causal_lm are truncated to different lengths."""
        return Examples(self.dataset(part), count, cut=self.task == "causal_lm")

    def model(self, dataset: Any, base: str = "tiny") -> PreTrainedModel:
        """Return the model with its initial weights, which are always the same."""
        raise NotImplementedError

    def gradient(self, batch_size: int, accumulation: int) -> np.ndarray:
        """Return the gradient of one step on a global batch."""
        raise NotImplementedError

    def valid_losses(self, batch_sizes: list[int], count: int) -> list[float]:
        """Return the validation loss for each evaluation batch size."""
        raise NotImplementedError

    def fit(self, fit: Fit) -> np.ndarray:
        """Train; return the final weights."""
        raise NotImplementedError


class Ours(System):
    """The rendered project."""

    name = "hf-template"

    def model(self, dataset: Any, base: str = "tiny") -> PreTrainedModel:
        from model.configuration import ModelConfig
        from model.modeling import Model

        set_seed(SEED)
        return Model(ModelConfig(str(self.sample / base), **dataset.schema))

    @contextmanager
    def opened(self, batch_size: int) -> Iterator[Any]:
        """Open a run of the project whose model has the initial weights."""
        weights = self.model(self.dataset("train")).state_dict()
        from training.contract import Task
        from training.opening import open_run

        outdir = self.sample / "outdir"  # nothing is saved here
        options = {**self.data("tiny"), "outdir": outdir, "batch_size": batch_size}
        with open_run(Task(), as_arguments(options)) as run:
            run.accelerator.unwrap_model(run.model).load_state_dict(weights)
            yield run

    def gradient(self, batch_size: int, accumulation: int) -> np.ndarray:
        examples = self.examples("train", GLOBAL_BATCH_SIZE)
        from train import train_step
        from training.batches import Batches
        from training.contract import ExampleSet

        with self.opened(batch_size) as run:
            batches = Batches(
                ExampleSet(examples), run.accelerator, batch_size, GLOBAL_BATCH_SIZE, seed=SEED
            )
            run.model.train()
            train_step(run, next(batches.steps()))
            return gradient_of(run.accelerator.unwrap_model(run.model))

    def valid_losses(self, batch_sizes: list[int], count: int) -> list[float]:
        examples = self.examples("valid", count)
        from reporting.report import Report
        from train import validate
        from training.batches import Batches
        from training.contract import ExampleSet
        from training.validation import ValidationSet

        with self.opened(1) as run:
            losses = []
            for size in batch_sizes:
                batches = Batches(ExampleSet(examples), run.accelerator, size)
                run.valid_sets = [ValidationSet("", batches, [run.scores])]
                losses.append(validate(run, Report(run))["loss"])
            return losses

    def fit(self, fit: Fit) -> np.ndarray:
        self.dataset("train")
        import train

        record, train_step = Recorder(fit.folder, fit.phase, fit.last_pass), train.train_step

        def recording(run: Any, step: Any) -> Any:
            def noted() -> Iterator:
                for micro in step.micro_batches:
                    record(micro.indices if micro.weight else [])
                    yield micro

            return train_step(run, replace(step, micro_batches=noted()))

        train.train_step = recording
        if fit.resume:
            train.main(["--restore_dir", str(fit.folder / "last")])
        else:
            options = {
                **self.data("tiny-dropout"),
                "outdir": fit.folder,
                "epochs": EPOCHS,
                "save_steps": SAVED_STEP,
                "batch_size": fit.batch_size,
                "accumulation": ACCUMULATION,
                "lr": LEARNING_RATE,
                "num_workers": 0,
            }
            train.main(as_arguments(options))
        return flat(load_file(fit.folder / "last" / "model.safetensors"))

    def data(self, base: str) -> dict[str, Any]:
        return {
            "train_input": self.sample / "train.jsonl",
            "valid_input": self.sample / "valid.jsonl",
            "model_id": self.sample / base,
            "max_len": MAX_LENGTH,
            "seed": SEED,
        }


def as_arguments(options: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]
