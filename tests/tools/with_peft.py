"""Add a PEFT adapter to a checkpoint, save it, load it again, and merge it."""

import importlib
import json
import sys
from pathlib import Path

import peft
import torch
import transformers

checkpoint, auto_class = sys.argv[1:]
config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
trust = {"trust_remote_code": "auto_map" in config}
auto = getattr(transformers, auto_class)
kinds = {
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
}
inputs = {"input_ids": torch.tensor([[1, 5, 6, 7]])}
if config.get("is_encoder_decoder"):
    inputs["decoder_input_ids"] = inputs["input_ids"]

# Load the model twice: loading two models with custom code must not mix their classes.
auto.from_pretrained(checkpoint, **trust)
model = auto.from_pretrained(checkpoint, **trust).eval()
before = model(**inputs).logits
lora = peft.LoraConfig(
    task_type=kinds[auto_class],
    init_lora_weights=False,
    target_modules=r".*\.(q_proj|v_proj|q_lin|v_lin)",
    modules_to_save=["head"] if trust["trust_remote_code"] else None,
)
adapted = peft.get_peft_model(model, lora).eval()
logits = adapted(**inputs).logits
assert not torch.equal(logits, before)
adapted.save_pretrained("adapter")
loader = getattr(importlib.import_module("peft"), auto_class.replace("Auto", "AutoPeft"))
again = loader.from_pretrained("adapter", **trust).eval()
assert torch.equal(again(**inputs).logits, logits)
merged = again.merge_and_unload()(**inputs).logits
torch.testing.assert_close(merged, logits, rtol=1e-4, atol=1e-5)
