"""The configuration: a base encoder, the scale of the similarities, and the chunk size."""

from .base import WrapperConfig

BASE_MODEL = "tiny"
OPTIONS: dict[str, dict] = {
    "scale": {"type": float, "default": 20.0, "help": "factor of the cosine similarities"},
    "chunk_size": {"type": int, "default": 8, "help": "number of texts to embed at once"},
}


class ModelConfig(WrapperConfig):
    """The configuration of a base encoder; see `WrapperConfig`.

    Args:
        scale: Factor of the similarities: an inverse temperature.
        chunk_size: Number of texts to embed at once. It affects the memory use. It changes the
            result only through rounding and dropout masks.
    """

    model_type = "contrastive"
    default_base_model = BASE_MODEL

    def __init__(
        self,
        base_model_id: str | None = None,
        scale: float = 20.0,
        chunk_size: int = 8,
        **kwargs,
    ):
        self.scale = scale
        self.chunk_size = chunk_size
        super().__init__(base_model_id, **kwargs)
