"""What the model is made of: saved as config.json, so that a checkpoint explains itself."""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

BASE_MODEL = "<< cookiecutter.base_model >>"


class ModelConfig(PreTrainedConfig):
    """A base encoder and the labels to choose from.

    Args:
        base_model_id: A Hub id or a local folder. A folder that holds a configuration but no
            weights is trained from random ones.
        labels: The label names, in the order of the logits.
        problem_type: What kind of labels they are: see `problem_of`.
        classifier_dropout: Probability of dropping a feature before the classifier; that of the
            base model's layers when not given.
        base_config: The base model's own configuration; read from `base_model_id` when not given.
    """

    model_type = "custom_classification"
    pipeline_tag = "text-classification"  # what the Hub calls this task
    sub_configs = {"base_config": AutoConfig}

    def __init__(
        self,
        base_model_id: str = BASE_MODEL,
        labels: list[str] | None = None,
        problem_type: str = "single_label_classification",
        classifier_dropout: float | None = None,
        base_config: PreTrainedConfig | dict | None = None,
        **kwargs,
    ):
        if isinstance(base_config, dict):
            base_config = AutoConfig.for_model(**base_config)
        self.base_model_id = base_model_id
        self.base_config: PreTrainedConfig = base_config or AutoConfig.from_pretrained(
            base_model_id
        )
        if classifier_dropout is None:
            layers = getattr(self.base_config, "dropout", 0.1)  # BERT and its kin name it otherwise
            classifier_dropout = getattr(self.base_config, "hidden_dropout_prob", layers)
        self.classifier_dropout = classifier_dropout
        if labels is not None:
            kwargs["id2label"] = dict(enumerate(labels))
            kwargs["label2id"] = {name: index for index, name in enumerate(labels)}
        super().__init__(**kwargs)
        self.problem_type = problem_type  # given above, a single label would be refused

    @property
    def base_has_weights(self) -> bool:
        folder = Path(self.base_model_id)
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
        return bool(weights) or not folder.is_dir()


def problem_of(names: list[str], is_list: bool) -> str:
    """Find out what labels are, in the words that transformers has for it.

    Args:
        names: All that occur.
        is_list: Whether an example has a list of them.

    Returns:
        `multi_label_classification` for lists, `regression` where all are numbers and some have
        fractions, else `single_label_classification`.
    """
    if is_list:
        return "multi_label_classification"
    numbers = []
    for name in names:
        with suppress(ValueError):
            numbers.append(_number(name))
    has_fractions = not all(number.is_integer() for number in numbers)
    # A few cells that are no numbers do not make classes of all the others: they are errors.
    is_regression = has_fractions and 2 * len(numbers) >= len(names)
    return "regression" if is_regression else "single_label_classification"


def label_encoder(problem_type: str, labels: list[str]) -> Callable[[Any], int | float | list]:
    """What makes of an example's label, or list of labels, what the loss is computed with.

    It raises KeyError for a name that is none of `labels`, and ValueError for no number.
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


AutoConfig.register(ModelConfig.model_type, ModelConfig, exist_ok=True)
ModelConfig.register_for_auto_class()
