"""What validation reports beside the loss."""

import torch

from .configuration import ModelConfig


class Scores:
    """Perplexity: the exponential of the loss per token."""

    def __init__(self, config: ModelConfig, device: torch.device):
        pass

    def update(self, outputs, inputs: dict[str, torch.Tensor]) -> None:
        """Take in a batch: what the model made of it, and what it was given."""

    def compute(self, loss: float) -> dict[str, float]:
        """Give the scores, by name; `loss` is the mean over all label items."""
        return {"perplexity": torch.tensor(loss, dtype=torch.float64).exp().item()}
