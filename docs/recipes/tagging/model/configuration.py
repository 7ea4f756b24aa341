"""The configuration: a base encoder, and the tags."""

from .base import WrapperConfig

BASE_MODEL = "tiny"


class ModelConfig(WrapperConfig):
    """The configuration of a base encoder, and the tags.

    Args:
        base_model_id: See `WrapperConfig`.
        tags: Names of the tags; the first one means a correct word.
    """

    model_type = "two_headed_tagger"
    default_base_model = BASE_MODEL

    def __init__(self, base_model_id: str | None = None, tags: list[str] | None = None, **kwargs):
        self.tags = tags or ["KEEP", "ERROR"]
        super().__init__(base_model_id, **kwargs)
