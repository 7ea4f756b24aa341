"""Check that torchao loads a checkpoint in int8, with logits close to those in float32."""

import sys

import torch
import transformers
from torchao.quantization import Int8WeightOnlyConfig

checkpoint, auto_class = sys.argv[1:]
auto = getattr(transformers, auto_class)
config = transformers.TorchAoConfig(Int8WeightOnlyConfig())
whole = auto.from_pretrained(checkpoint).eval()
small = auto.from_pretrained(checkpoint, quantization_config=config, dtype=torch.float32).eval()
inputs = {"input_ids": torch.tensor([[1, 5, 6, 7]])}
if whole.config.is_encoder_decoder:
    inputs["decoder_input_ids"] = inputs["input_ids"]
expected = whole(**inputs).logits
difference = (small(**inputs).logits - expected).abs().max()
assert 0 < difference < 0.05 * expected.abs().max(), difference
