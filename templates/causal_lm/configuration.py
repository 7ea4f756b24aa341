"""The configuration of the model."""

from .base import WrapperConfig

BASE_MODEL = "<< cookiecutter.base_model >>"


class ModelConfig(WrapperConfig):
    """A base decoder: see `WrapperConfig`."""

    model_type = "custom_causal_lm"
    pipeline_tag = "text-generation"  # the task's name on the Hub
    default_base_model = BASE_MODEL

    def __init__(self, base_model_id: str | None = None, **kwargs):
        super().__init__(base_model_id, **kwargs)


ModelConfig.register_for_auto_class()
