"""What the model is made of: saved as config.json, so that a checkpoint explains itself."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

BASE_MODEL = "<< cookiecutter.base_model >>"


class ModelConfig(PreTrainedConfig):
    """A base encoder and the labels to choose from.

    Args:
        base_model_id: A Hub id or a local folder. A folder that holds a configuration but no
            weights is trained from random ones.
        labels: The label names, in the order of the logits.
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

    @property
    def base_has_weights(self) -> bool:
        folder = Path(self.base_model_id)
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
        return bool(weights) or not folder.is_dir()


AutoConfig.register(ModelConfig.model_type, ModelConfig, exist_ok=True)
ModelConfig.register_for_auto_class()
