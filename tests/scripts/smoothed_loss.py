"""Compare the loss with that of torch in float64, with label smoothing in training mode only.

python smoothed_loss.py SHIFT    SHIFT: 1 if the logits at a position predict the next label, else 0
"""

import sys

import torch
from torch.nn.functional import cross_entropy

from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.modeling import Model

shift = int(sys.argv[1])
torch.manual_seed(0)
dataset = generate_dataset("data/valid.jsonl", max_len=48)
batch = dataset.collate([dataset[0], dataset[1], dataset[len(dataset) - 1]])
inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
named = {"end_ids"} & dataset.schema.keys()
model = Model(ModelConfig(label_smoothing=0.2, **{name: dataset.schema[name] for name in named}))
for module in model.modules():
    for name in ("p", "dropout", "activation_dropout", "attention_dropout"):
        if isinstance(getattr(module, name, None), float):
            setattr(module, name, 0.0)
found = []
for mode, smoothing in ((True, 0.2), (False, 0.0)):
    outputs = model.train(mode)(**inputs)
    without = {name: value for name, value in inputs.items() if name != "labels"}
    if not shift:
        without["decoder_input_ids"] = model.shift_right(inputs["labels"])
    logits = model(**without).logits.double()
    logits = logits[:, : logits.shape[1] - shift].flatten(0, 1)
    labels = inputs["labels"][:, shift:].flatten()
    expected = cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(outputs.loss.double(), expected, rtol=1e-5, atol=0)
    found.append(expected.item())
assert abs(found[0] - found[1]) > 1e-4
