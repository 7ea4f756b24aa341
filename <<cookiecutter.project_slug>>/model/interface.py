"""The interface through which train.py and predict.py use the files in this folder.

Three things are required: `ModelConfig` in configuration.py; `Model(config)` in modeling.py, a
`transformers.PreTrainedModel` whose `forward` returns an `Output`; and `generate_dataset(path)` in
dataset.py, which returns a `TaskDataset`. Everything else is optional, and has a default:

configuration.py
    BASE_MODEL: The base model if `--model_id` is not given. Default: "tiny".
    OPTIONS: Arguments of `ModelConfig` that train.py offers on its command line: a dict from their
        names to the keyword arguments of `ArgumentParser.add_argument`. Default: none.
modeling.py
    `num_items_in_batch` as a parameter of `Model.forward`: see `Output.loss`.
    Model.loss_couples_examples: True if the loss of an example depends on the other examples in the
        micro-batch. Micro-batches of `--batch_size` examples are then not split further to limit
        their number of tokens (on a CPU) or their memory. Default: False.
    Model.leaves_parameters_unused: True if some steps leave trained parameters without a gradient.
        Needed only with several processes, and only if the check before the first step does not
        find such parameters. If it is needed but False, the first step that leaves such a parameter
        without a gradient raises an error that names this attribute. Default: False.
dataset.py
    `tokenizer`, `max_len` as parameters of `generate_dataset`. Default: no tokenizer is loaded.
    OPTIONS: Arguments of `generate_dataset`, as in configuration.py.
metrics.py
    Scores: see `Scorer`. Default: only the loss.
    OPTIONS: Arguments of `Scores`, as in configuration.py.
prediction.py
    Predictor: see `TaskPredictor`. Default: predict.py is not available.
    OPTIONS: Arguments of `Predictor` that predict.py offers, as in configuration.py.
optimization.py
    build_optimizer: see `OptimizerBuilder`. Default: `--optimizer`.
    build_scheduler: see `SchedulerBuilder`. Default: `--lr_scheduler_type`.

For `--help`, the modules that define BASE_MODEL and OPTIONS are not imported: only the statements
on which these constants depend are executed. If one of these statements fails, the module is
imported.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Output(Protocol):
    """Return type of `Model.forward`: any `transformers.utils.ModelOutput` with a loss.

    Attributes:
        loss: A scalar. If `forward` has a parameter `num_items_in_batch`: the sum of the losses of
            the target items (for example tokens) in the micro-batch, divided by
            `num_items_in_batch`, the number of target items in the global batch or, if the target
            items have weights, the sum of these weights. Otherwise: the mean over the micro-batch.

    An optional attribute `losses` is a dict of further scalars, which `forward` has to divide by
    the same number as the loss. They are logged together with the loss.
    """

    loss: torch.Tensor


class TaskDataset(Protocol):
    """Return type of `generate_dataset`: a `torch.utils.data.Dataset` of dicts.

    The values in a batch are tensors, nested dicts of tensors, or values that only the metrics
    read, such as strings. With a method `collate`, the values in an example may be of any type.

    Optional attributes and methods:
        lengths: Number of tokens of each example, shape (n,). Examples of similar length are
            batched together. Default: 1.
        num_items: Number of target items of each example, or the sum of their weights, shape (n,).
            The mean loss is the sum of the losses divided by the sum of `num_items`. Default: 1.
        sort_keys: Sort key of each example, shape (n,). Examples with similar keys are batched
            together. Default: `lengths`.
        schema: Keyword arguments with which `generate_dataset` reads another file as it has read
            this one. Their values have JSON types. Arguments that `ModelConfig` accepts are also
            passed to `ModelConfig`. Default: empty.
        fingerprint: Integer that changes when the data change. Default: a hash of `num_items` and
            of up to 256 examples.
        checksums: Checksum of the content of each example, shape (n,). Without `--valid_input`, the
            checksum determines whether the example is held out for validation. `--dry_run` finds
            equal examples by their checksums. Default: checksums are computed only to hold out
            examples, and `--dry_run` does not search for equal examples.
        collate(examples): Batch a list of examples. Default: torch's `default_collate`.
        describe(): Lines that `--dry_run` prints about the data. Default: keys and shapes.
        notes: Lines that every run prints, for example about omitted rows. Default: none.
        faults(train): Lines that `--dry_run` prints about examples that may be wrong. `train` is
            the training data set when the method is called on a validation set, otherwise None.
            Default: lines about equal examples, if the data set has `checksums`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Scorer(Protocol):
    """`Scores` of metrics.py, constructed as `Scores(model, tokenizer, device, **options)`.

    A static method `directions(schema, **options)` returns a dict: for each score, whether larger
    values are better.

    Optional attributes and methods:
        generates: True if a method calls `model.generate`. Default: False.
        predict_options(): Arguments of `Predictor` that the latest validation chose, as a dict with
            values of JSON types. Called on every rank after `compute`; the result is saved with the
            checkpoint. Arguments on the command line of predict.py take precedence. Default: none.
        table(): Scores of the latest validation for the model card, as a dict from row names to
            dicts from column names to scores. Called on the main rank after `compute`. Default:
            none.
    """

    def reset(self) -> None:
        """Start a validation."""

    def update(self, outputs: Any, batch: dict[str, Any]) -> None:
        """Add a batch of this rank: the model's output, and the collated examples.

        With several named validation sets, each batch is added to two `Scores`, one after the
        other: the `Scores` of all sets together, and the `Scores` of its own set.
        """

    def compute(self, loss: float) -> dict[str, float]:
        """Return the scores over all ranks, given the mean loss."""

    def save(self, folder: Path) -> None:
        """Write samples or pictures into `folder`, the output directory.

        Called on the main rank after a validation, at most every 10 seconds, and after the last
        validation. If such a call fails, the run continues; only the first error is printed. The
        check before the first step may also call this method, with a temporary folder; if that call
        fails, the run ends.
        """


class Conversation(Protocol):
    """Return type of `Predictor.start_conversation`. An answer may depend on all earlier lines."""

    def answer(self, line: str, show: Callable[[str], object]) -> None:
        """Answer a line. Pass the answer to `show`, as a whole or in pieces during generation."""


class TaskPredictor(Protocol):
    """`Predictor` of prediction.py.

    Constructed as `Predictor(model, tokenizer, max_len, schema, **options)`.

    Attributes:
        columns: Columns of the input file that predict.py reads. `--column` replaces them.

    Optional attributes and methods:
        takes_lists: Whether a column may hold lists of texts. Default: False.
        notes: Lines to print. Default: none.
        lengths(texts): Returns the size of each row, such as its number of tokens. Rows of similar
            size are batched together. Default: the number of characters.
        read(source): Returns the rows of a file, as dicts with values of any type. Default: the
            values in `columns` are read as text.
        start_conversation(): Returns a `Conversation` for lines typed in the terminal. Default:
            each line is a separate row; if there is a method `read`, predict.py requires `--input`.
    """

    columns: list[str]

    def __call__(self, texts: list[Any]) -> list[dict[str, Any]]:
        """Return a dict with the key `prediction` for each row."""


class OptimizerBuilder(Protocol):
    """`build_optimizer` of optimization.py."""

    def __call__(self, model: nn.Module, lr: float, weight_decay: float, /) -> Optimizer:
        """Build an optimizer.

        Each parameter that requires a gradient must be in exactly one parameter group.

        Checkpoints contain the optimizer's state, whose tensors may have any shape, and the numbers
        in its parameter groups that arguments do not determine. If the optimizer has methods
        `train()` and `eval()`, as schedule-free optimizers do, the weights after `eval()` are
        validated and saved as best/.

        Args:
            lr, weight_decay: `--lr` and `--weight_decay`.
        """


class SchedulerBuilder(Protocol):
    """`build_scheduler` of optimization.py."""

    def __call__(
        self, optimizer: Optimizer, num_warmup_steps: int, total_steps: int, /
    ) -> LRScheduler:
        """Build a schedule that depends only on the optimizer step."""
