"""Check that ONNX Runtime and transformers have the same logits, also in a batch with padding."""

import sys

import onnxruntime
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
for texts in (["Win a prize now"], ["See you at lunch", "No", "Call this number, and win, " * 20]):
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    feed = {name: inputs[name].numpy() for name in ("input_ids", "attention_mask")}
    (found,) = session.run(["logits"], feed)
    torch.testing.assert_close(
        torch.from_numpy(found), model(**inputs).logits, rtol=1e-4, atol=1e-5
    )
