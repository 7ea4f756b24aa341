"""The configuration of the model, and functions for the types of labels."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from transformers import PreTrainedTokenizerBase

from .argument_types import fraction
from .base import WrapperConfig

BASE_MODEL = "<< cookiecutter.base_model >>"


# Arguments of ModelConfig that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "label_smoothing": {
        "type": fraction,
        "default": 0.0,
        "metavar": "X",
        "help": "fraction of the probability of each training target to spread evenly over all "
        "labels",
    },
}


class ModelConfig(WrapperConfig):
    """A base encoder or decoder, and its labels.

    Args:
        base_model_id: See `WrapperConfig`, which also describes the arguments not listed here.
        labels: The label names in the order of the logits. Default: the labels of the base model.
        problem_type: The type of labels: see `infer_problem_type`.
        label_smoothing: See `compute_loss`; used in training mode only.
    """

    model_type = "custom_classification"
    pipeline_tag = "text-classification"  # the task's name on the Hub
    default_base_model = BASE_MODEL

    def __init__(
        self,
        base_model_id: str | None = None,
        labels: list[str] | None = None,
        problem_type: str | None = None,
        label_smoothing: float = 0.0,
        **kwargs,
    ):
        saved = list((kwargs.get("id2label") or {}).values())
        if labels is not None and saved and saved != labels:
            found = ", ".join(saved)
            raise ValueError(f"the head is for the labels {found}; expected data with these labels")
        super().__init__(base_model_id, **kwargs)
        if labels is not None:
            self.base_config.id2label = self.id2label = dict(enumerate(labels))
            self.base_config.label2id = {name: index for index, name in enumerate(labels)}
            self.label2id = self.base_config.label2id
        one_value = "regression" if self.num_labels == 1 else "single_label_classification"
        self.problem_type = problem_type or self.base_config.problem_type or one_value
        self.base_config.problem_type = self.problem_type
        self.label_smoothing = label_smoothing
        if label_smoothing and self.problem_type != "single_label_classification":
            raise ValueError(
                f"--label_smoothing {label_smoothing}: expected a single label per example, not "
                f"{self.problem_type}"
            )

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Copy the padding token of the tokenizer if the base model has none.

        Decoders classify by the last token that is not padding, so they have to recognize padding.
        """
        if self.base_config.pad_token_id is None:
            self.base_config.pad_token_id = tokenizer.pad_token_id

    @property
    def labels(self) -> list[str]:
        """The label names in the order of the logits."""
        return [self.id2label[index] for index in range(self.num_labels)]


def infer_problem_type(names: list[str], is_list: bool) -> str:
    """Infer the `problem_type` of transformers from the labels.

    Args:
        names: All distinct labels.
        is_list: Whether each example has a list of labels.

    Returns:
        `multi_label_classification` for lists; `regression` if at least half of the labels are
        numbers, and some of these have fractions; else `single_label_classification`.
    """
    if is_list:
        return "multi_label_classification"
    numbers = []
    for name in names:
        with suppress(ValueError):
            numbers.append(_number(name))
    has_fractions = not all(number.is_integer() for number in numbers)
    # If most labels are numbers, the other labels are errors in the data, not names of classes.
    is_regression = has_fractions and 2 * len(numbers) >= len(names)
    return "regression" if is_regression else "single_label_classification"


def label_encoder(problem_type: str, labels: list[str]) -> Callable[[Any], int | float | list]:
    """Return a function that converts the label or labels of an example to a target of the loss.

    The target is a label id; for a list of labels, 1.0 or 0.0 for each label; in regression, a
    number. The returned function raises KeyError if a name is not in `labels` or, in regression,
    ValueError if a value is not a finite number.
    """
    ids = {name: index for index, name in enumerate(labels)}

    def one_or_zero(names: list[str]) -> list[float]:
        given = {ids[name] for name in names}
        return [float(index in given) for index in range(len(labels))]

    encoders: dict[str, Callable[[Any], int | float | list]] = {
        "single_label_classification": ids.__getitem__,
        "multi_label_classification": one_or_zero,
        "regression": _number,
    }
    return encoders[problem_type]


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


ModelConfig.register_for_auto_class()
