from transformers import PreTrainedConfig


class ModelConfig(PreTrainedConfig):
    model_type = "least"
