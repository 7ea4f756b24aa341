"""The configuration of the model."""

from .base import WrapperConfig

BASE_MODEL = "<< cookiecutter.base_model >>"


class ModelConfig(WrapperConfig):
    """A base decoder: see `WrapperConfig`.

    Args:
        end_ids: Ids of the end-of-turn tokens. Generation also stops at these, in addition to the
            end tokens of the base model.
    """

    model_type = "custom_chat"
    pipeline_tag = "text-generation"  # the task's name on the Hub
    default_base_model = BASE_MODEL

    def __init__(
        self, base_model_id: str | None = None, end_ids: list[int] | None = None, **kwargs
    ):
        self.end_ids = end_ids or []
        super().__init__(base_model_id, **kwargs)


ModelConfig.register_for_auto_class()
