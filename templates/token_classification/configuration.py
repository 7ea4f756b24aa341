"""The configuration of the model."""

from .base import WrapperConfig

BASE_MODEL = "<< cookiecutter.base_model >>"


class ModelConfig(WrapperConfig):
    """A base encoder or decoder, and the labels of its tokens.

    Args:
        base_model_id: See `WrapperConfig`, also for all other arguments.
        labels: The label names in the order of the logits. Default: the labels of the base model.
    """

    model_type = "custom_token_classification"
    pipeline_tag = "token-classification"  # the task's name on the Hub
    default_base_model = BASE_MODEL

    def __init__(self, base_model_id: str | None = None, labels: list[str] | None = None, **kwargs):
        saved = list((kwargs.get("id2label") or {}).values())
        if labels is not None and saved and saved != labels:
            raise ValueError(f"its head is for the labels {', '.join(saved)}; expected the same")
        super().__init__(base_model_id, **kwargs)
        if labels is not None:
            self.base_config.id2label = self.id2label = dict(enumerate(labels))
            self.base_config.label2id = {name: index for index, name in enumerate(labels)}
            self.label2id = self.base_config.label2id

    @property
    def labels(self) -> list[str]:
        """The label names in the order of the logits."""
        return [self.id2label[index] for index in range(self.num_labels)]


ModelConfig.register_for_auto_class()
