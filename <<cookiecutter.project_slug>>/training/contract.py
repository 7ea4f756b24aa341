"""The classes and functions of `model/`, and defaults for the optional ones.

See model/interface.py.
"""

import argparse
import importlib.util
import inspect
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate
from transformers import PreTrainedTokenizerBase

from errors import DataError, RunError
from model.interface import (
    OptimizerBuilder,
    SchedulerBuilder,
    Scorer,
    TaskDataset,
    TaskPredictor,
)
from reading.faults import repeats

from .options import TaskOptions
from .user_code import user_code

SAMPLED = 256  # maximum number of examples to hash if a data set has no fingerprint


class LossOnly:
    """Default for a model without metrics.py: no scores."""

    generates = False

    def __init__(self, *_: object):
        pass

    @staticmethod
    def directions(schema: dict) -> dict[str, bool]:
        return {}

    def reset(self) -> None:
        pass

    def update(self, outputs: Any, batch: dict[str, Any]) -> None:
        pass

    def compute(self, loss: float) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        pass


class ExampleSet:
    """The user's data set, with the attributes that batching needs.

    Attributes:
        lengths, num_items, sort_keys: See `TaskDataset`; shape (n,).
        schema: Settings with which the data were read: see `TaskDataset`.
        fingerprint: Integer by which changed data are detected: see `TaskDataset`.
        notes: Lines to print.
        is_divisible: Whether micro-batches may be made smaller than `--batch_size` to limit their
            number of tokens or their memory. False if the loss couples the examples of a
            micro-batch.
        has_lengths, has_num_items: Whether the user's data set itself has the attribute `lengths`;
            whether it has the attribute `num_items`.

    Raises:
        RunError: The shape of an attribute is not (n,).
    """

    def __init__(self, dataset: TaskDataset, is_divisible: bool = True):
        self.dataset = dataset
        self.is_divisible = is_divisible
        self.has_lengths = hasattr(dataset, "lengths")
        self.has_num_items = hasattr(dataset, "num_items")
        self.lengths = self._numbers("lengths")
        self.num_items = self._numbers("num_items")
        self.sort_keys = self._numbers("sort_keys", self.lengths)
        self.schema: dict = getattr(dataset, "schema", {})
        self.notes: list[str] = getattr(dataset, "notes", [])
        self.collate: Callable = getattr(dataset, "collate", default_collate)
        self.fingerprint: int = getattr(dataset, "fingerprint", None) or self._hash_sample()

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: list[int]) -> dict[str, Any]:
        """Load and collate examples.

        Raises:
            RunError: `default_collate` cannot stack the examples, or the batch is not a dict.
        """
        examples = self.fetch(indices)
        try:
            batch = self.collate(examples)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            if self.collate is not default_collate:
                raise
            reason = str(error).splitlines()[0]
            raise RunError(
                f"model/dataset.py: examples cannot be stacked ({reason}); expected values of the "
                "same shape, or a method collate(examples) of the data set"
            ) from None
        if not isinstance(batch, dict):
            kind = type(batch).__name__
            raise RunError(f"model/dataset.py: a batch is a {kind}; expected a dict of tensors")
        return batch

    def describe(self) -> Iterator[str]:
        """Yield lines about the data for `--dry_run`."""
        if hasattr(self.dataset, "describe"):
            yield from self.dataset.describe()
            return
        for key, value in self.dataset[0].items():
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            yield f"  {key}: {shape}"

    def faults(self, train: "ExampleSet | None" = None) -> Iterator[str]:
        """Yield lines about examples that may be wrong, for `--dry_run`.

        Args:
            train: Training data, if this data set is validation data.
        """
        if hasattr(self.dataset, "faults"):
            yield from self.dataset.faults(train and train.dataset)
        elif hasattr(self.dataset, "checksums"):
            checksums = np.asarray(self.dataset.checksums)
            others = getattr(train and train.dataset, "checksums", [])
            found = {
                "equal to an earlier example": repeats(checksums),
                "also in the training data": np.flatnonzero(np.isin(checksums, others)),
            }
            for what, rows in found.items():
                if len(rows):
                    yield f"  {what}: {len(rows):,}, first example {rows[0]} (0-based)"

    def fetch(self, indices: list[int]) -> list[Any]:
        """Return examples of the data set."""
        fetch = getattr(self.dataset, "__getitems__", None)
        return fetch(indices) if fetch else [self.dataset[index] for index in indices]

    def _numbers(self, name: str, default: np.ndarray | None = None) -> np.ndarray:
        count = len(self.dataset)
        if not hasattr(self.dataset, name):
            return np.ones(count, dtype=np.int64) if default is None else default
        values = np.asarray(getattr(self.dataset, name))
        if values.shape != (count,):
            raise RunError(
                f"model/dataset.py: {name} has shape {values.shape}; expected ({count},)"
            )
        return values

    def _hash_sample(self) -> int:
        # Hash integers as int64, as earlier versions did: saved fingerprints remain valid.
        is_whole = np.issubdtype(self.num_items.dtype, np.integer)
        items = np.ascontiguousarray(self.num_items, np.int64 if is_whole else np.float64)
        digest = zlib.crc32(items.tobytes())
        for index in np.linspace(0, len(self) - 1, min(SAMPLED, len(self))).astype(int):
            digest = hash_example(self.dataset[int(index)], digest)
        return digest


class Task(TaskOptions):
    """The classes and functions of `model/`.

    Attributes:
        divides_by_items: Whether `forward` has a parameter `num_items_in_batch`. If not, its loss
            is treated as a mean over the micro-batch, and weighted by the fraction of the step's
            target items that are in the micro-batch.
        couples_examples: `Model.loss_couples_examples`: whether the loss depends on which examples
            are in a micro-batch together.
        leaves_unused: `Model.leaves_parameters_unused`: whether a step may leave parameters without
            a gradient. If so, DistributedDataParallel searches for such parameters in each step.
        build_optimizer, build_scheduler: Functions of model/optimization.py, or None.
    """

    def __init__(self) -> None:
        configuration = importlib.import_module("model.configuration")
        modeling = importlib.import_module("model.modeling")
        dataset = importlib.import_module("model.dataset")
        metrics = _optional("model.metrics")
        prediction = _optional("model.prediction")
        optimization = _optional("model.optimization")
        super().__init__()
        self.config_class = configuration.ModelConfig
        self.model_class = modeling.Model
        self.generate_dataset = dataset.generate_dataset
        self.scores_class = getattr(metrics, "Scores", LossOnly)
        self.predictor_class = getattr(prediction, "Predictor", None)
        self.build_optimizer: OptimizerBuilder | None = getattr(
            optimization, "build_optimizer", None
        )
        self.build_scheduler: SchedulerBuilder | None = getattr(
            optimization, "build_scheduler", None
        )
        self.divides_by_items = _accepts(self.model_class.forward, "num_items_in_batch")
        self.couples_examples = bool(getattr(self.model_class, "loss_couples_examples", False))
        self.leaves_unused = bool(getattr(self.model_class, "leaves_parameters_unused", False))

    @property
    def needs_tokenizer(self) -> bool:
        """Whether `generate_dataset` has a parameter `tokenizer`."""
        return _accepts(self.generate_dataset, "tokenizer")

    def read(
        self,
        source: str | list[str],
        tokenizer: PreTrainedTokenizerBase | None,
        max_len: int,
        **options: Any,
    ) -> ExampleSet:
        """Call `generate_dataset` with the arguments that it accepts.

        Raises:
            DataError: The source cannot be read.
            RunError: An attribute of the data set has a wrong shape.
        """
        arguments = {"tokenizer": tokenizer, "max_len": max_len, **options}
        accepted = _accepted(self.generate_dataset, arguments)
        try:
            dataset = self.generate_dataset(source, **accepted)
        except OSError as error:
            raise DataError(f"{source}: cannot be read ({error})") from None
        return ExampleSet(dataset, is_divisible=not self.couples_examples)

    def build_config(self, model_id: str, arguments: dict[str, Any]) -> Any:
        """Build a `ModelConfig` from the arguments that its constructor accepts."""
        arguments = {"base_model_id": model_id, **arguments}
        named = inspect.signature(self.config_class.__init__).parameters.keys()
        return self.config_class(**{name: arguments[name] for name in named & arguments.keys()})

    def directions(self, schema: dict, options: dict[str, Any]) -> dict[str, bool]:
        """Return for the loss and for each score whether larger values are better."""
        return {"loss": False, **self.scores_class.directions(schema, **options)}

    def build_scores(self, model: Any, tokenizer: Any, device: Any, options: dict) -> Scorer:
        return self.scores_class(model, tokenizer, device, **options)

    def build_predictor(
        self,
        model: Any,
        tokenizer: Any,
        max_len: int,
        schema: dict,
        options: dict[str, Any],
    ) -> TaskPredictor:
        """Build a Predictor.

        Raises:
            RunError: The constructor fails, or `model/` has no Predictor.
        """
        if self.predictor_class is None:
            raise RunError("model/prediction.py: no class Predictor; expected one for predict.py")
        with user_code("model/prediction.py: Predictor cannot be built"):
            return self.predictor_class(model, tokenizer, max_len, schema, **options)

    def forward(
        self, model: torch.nn.Module, batch: dict[str, Any], num_items: float
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """Run the model on the tensors of a batch.

        Returns:
            The output of the model, and its losses by name. "loss" is the one to minimize.
        """
        inputs = model_inputs(batch)
        if self.divides_by_items:
            inputs["num_items_in_batch"] = num_items
        outputs = model(**inputs)
        return outputs, {**(getattr(outputs, "losses", None) or {}), "loss": outputs.loss}


def chosen_options(scores: Scorer) -> dict[str, Any]:
    """Return `Scorer.predict_options()`. Default: empty."""
    return getattr(scores, "predict_options", dict)()


def scores_table(scores: Scorer) -> dict[str, dict[str, float]]:
    """Return `Scorer.table()`. Default: empty."""
    return getattr(scores, "table", dict)()


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a batch that contain tensors: the inputs of `forward`."""
    return {key: value for key, value in batch.items() if _holds_tensor(value)}


def defaults(options: dict[str, dict]) -> dict[str, Any]:
    """Return the default values of command line arguments."""
    parser = argparse.ArgumentParser()
    for name, option in options.items():
        parser.add_argument(f"--{name}", **option)
    return vars(parser.parse_args([]))


def predictor_input(row: dict[str, Any]) -> Any:
    """Return the input of a Predictor for a row: its single value, or a list of its values."""
    values = list(row.values())
    return values if len(values) > 1 else values[0]


def hash_example(example: Any, start: int = 0) -> int:
    """Return a checksum of all keys and values in an example."""
    for part in _leaves(example):
        start = zlib.crc32(part, start)
    return start


def _optional(name: str) -> Any:
    """Import a module of `model/` if its file exists."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _accepts(function: Callable, name: str) -> bool:
    return name in inspect.signature(function).parameters


def _accepted(function: Callable, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments accepted by a function."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, torch.Tensor)


def _leaves(value: Any) -> Iterator[bytes]:
    """Yield the bytes of all keys and values in an example."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield key.encode()
            yield from _leaves(value[key])
    elif isinstance(value, torch.Tensor):
        yield value.detach().contiguous().cpu().view(-1).to(torch.float64).numpy().tobytes()
    elif isinstance(value, np.ndarray):  # the repr of a long array omits values
        yield np.ascontiguousarray(value).tobytes()
    else:
        yield repr(value).encode()


def accepts_weights(model: torch.nn.Module) -> bool:
    """Return whether `save_pretrained` has a parameter `state_dict` for the weights to save."""
    save: Callable = model.save_pretrained  # type: ignore[assignment]
    return "state_dict" in inspect.signature(save).parameters
