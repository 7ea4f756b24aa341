from transformers import PretrainedConfig


class ModelConfig(PretrainedConfig):
    model_type = "least"

    def __init__(self, size: int = 7, **kwargs):
        self.size = size
        super().__init__(**kwargs)
