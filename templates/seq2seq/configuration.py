"""The configuration of the model."""

from .base import WrapperConfig

BASE_MODEL = "<< cookiecutter.base_model >>"


class ModelConfig(WrapperConfig):
    """A base encoder-decoder: see `WrapperConfig`."""

    model_type = "custom_seq2seq"
    pipeline_tag = None  # transformers 5 has no pipeline from text to text
    default_base_model = BASE_MODEL

    def __init__(self, base_model_id: str | None = None, **kwargs):
        super().__init__(base_model_id, **kwargs)
        for name in ("encoder_layerdrop", "decoder_layerdrop"):
            if hasattr(self.base_config, name):
                # A skipped layer gets no gradient, which DistributedDataParallel rejects.
                setattr(self.base_config, name, 0.0)


ModelConfig.register_for_auto_class()
