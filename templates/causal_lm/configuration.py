"""The configuration of the model."""

from .argument_types import fraction
from .base import WrapperConfig

BASE_MODEL = "<< cookiecutter.base_model >>"


# Arguments of ModelConfig that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "label_smoothing": {
        "type": fraction,
        "default": 0.0,
        "metavar": "X",
        "help": "fraction of the probability of each training target to spread evenly over the "
        "vocabulary",
    },
}


class ModelConfig(WrapperConfig):
    """A base decoder: see `WrapperConfig`.

    Args:
        label_smoothing: See `cross_entropy`; used in training mode only.
    """

    model_type = "custom_causal_lm"
    pipeline_tag = "text-generation"  # the task's name on the Hub
    default_base_model = BASE_MODEL

    def __init__(self, base_model_id: str | None = None, label_smoothing: float = 0.0, **kwargs):
        self.label_smoothing = label_smoothing
        super().__init__(base_model_id, **kwargs)


ModelConfig.register_for_auto_class()
