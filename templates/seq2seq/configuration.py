"""What the model is made of: saved as config.json, so that a checkpoint explains itself."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

BASE_MODEL = "<< cookiecutter.base_model >>"


class ModelConfig(PreTrainedConfig):
    """A base encoder-decoder.

    Args:
        base_model_id: A Hub id or a local folder. A folder that holds a configuration but no
            weights is trained from random ones.
        base_config: The base model's own configuration; read from `base_model_id` when not given.
    """

    model_type = "custom_seq2seq"
    pipeline_tag = "text-generation"  # what the Hub calls this task
    sub_configs = {"base_config": AutoConfig}

    def __init__(
        self,
        base_model_id: str = BASE_MODEL,
        base_config: PreTrainedConfig | dict | None = None,
        **kwargs,
    ):
        if isinstance(base_config, dict):
            base_config = AutoConfig.for_model(**base_config)
        self.base_model_id = base_model_id
        self.base_config: PreTrainedConfig = base_config or AutoConfig.from_pretrained(
            base_model_id
        )
        for name in ("encoder_layerdrop", "decoder_layerdrop"):
            if hasattr(self.base_config, name):
                # A layer left out at random gets no gradient: DistributedDataParallel refuses that.
                setattr(self.base_config, name, 0.0)
        kwargs.setdefault("is_encoder_decoder", True)
        super().__init__(**kwargs)

    @property
    def base_has_weights(self) -> bool:
        folder = Path(self.base_model_id)
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
        return bool(weights) or not folder.is_dir()


AutoConfig.register(ModelConfig.model_type, ModelConfig, exist_ok=True)
ModelConfig.register_for_auto_class()
