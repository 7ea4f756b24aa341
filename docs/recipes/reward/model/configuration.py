"""The configuration: a base encoder."""

from .base import WrapperConfig

BASE_MODEL = "tiny"


class ModelConfig(WrapperConfig):
    """The configuration of a base encoder; see `WrapperConfig`."""

    model_type = "reward"
    default_base_model = BASE_MODEL
