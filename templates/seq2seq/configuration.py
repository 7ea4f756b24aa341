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
    """A base encoder-decoder: see `WrapperConfig`.

    Args:
        label_smoothing: See `cross_entropy`; used in training mode only.
    """

    model_type = "custom_seq2seq"
    pipeline_tag = None  # transformers 5 has no pipeline from text to text
    default_base_model = BASE_MODEL

    def __init__(self, base_model_id: str | None = None, label_smoothing: float = 0.0, **kwargs):
        self.label_smoothing = label_smoothing
        super().__init__(base_model_id, **kwargs)
        for name in ("encoder_layerdrop", "decoder_layerdrop"):
            if hasattr(self.base_config, name):
                # A skipped layer gets no gradient, which DistributedDataParallel rejects.
                setattr(self.base_config, name, 0.0)


ModelConfig.register_for_auto_class()
