"""Check the loss of token_classification, with weights and smoothing, against that of torch.

python token_losses.py FOLDER    reads FOLDER/train.jsonl and FOLDER/valid.jsonl; prints, as JSON,
                                 the labels of the training tokens and the weights of the labels
"""

import json
import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.modeling import Model
from train import main

FOLDER = Path(sys.argv[1])
TRAIN = FOLDER / "train.jsonl"
VALID = FOLDER / "valid.jsonl"
SMOOTHING = 0.1
torch.manual_seed(0)


def gradient(loss: torch.Tensor) -> torch.Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])


def mean(batch: dict, logits: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the mean loss of the tokens in float64, weighted as in the schema."""
    weights = torch.tensor(train.schema["class_weights"], dtype=torch.float64)
    flat = logits.double().flatten(0, 1)
    return cross_entropy(flat, batch["labels"].flatten(), weights, label_smoothing=smoothing)


def loss_of(some: range) -> torch.Tensor:
    """Return the sum of the losses of some windows, divided by the sum of all `num_items`."""
    batch = dataset.collate([dataset[index] for index in some])
    return model(**batch, num_items_in_batch=dataset.num_items.sum()).loss


# Read the validation file with the weights of the training file. Some texts have several windows.
train = generate_dataset(TRAIN, max_len=12, class_weight="balanced")
dataset = generate_dataset(VALID, max_len=12, **train.schema)
assert dataset.origin.row_of.max() + 1 < len(dataset)
assert dataset.schema == train.schema
assert dataset.fingerprint == generate_dataset(VALID, max_len=12, **train.schema).fingerprint
assert dataset.fingerprint != generate_dataset(VALID, max_len=12).fingerprint

# The loss of all windows is the weighted mean over their tokens, with smoothing in training only.
model = Model(ModelConfig(labels=dataset.schema["labels"], label_smoothing=SMOOTHING))
for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
whole = dataset.collate([dataset[index] for index in range(len(dataset))])
for mode, smoothing in ((False, 0.0), (True, SMOOTHING)):
    outputs = model.train(mode)(**whole)
    expected = mean(whole, outputs.logits, smoothing)
    torch.testing.assert_close(outputs.loss.double(), expected, rtol=1e-6, atol=0)

# The gradient does not depend on the size of the micro-batches, which differ in padding.
wanted = gradient(outputs.loss)
assert wanted.norm() > 0.1
for size in (1, 3, len(dataset)):
    starts = range(0, len(dataset), size)
    parts = [gradient(loss_of(range(len(dataset))[n : n + size])) for n in starts]
    assert (sum(parts) - wanted).norm() < 1e-5 * wanted.norm(), size

# The validation loss of a run is the weighted mean, without smoothing.
options = ["--class_weight=balanced", f"--label_smoothing={SMOOTHING}", "--max_len=12"]
data = [f"--train_input={TRAIN}", f"--valid_input={VALID}", f"--outdir={FOLDER / 'run'}"]
main([*data, *options, "--max_steps=1"])
best = Model.from_pretrained(FOLDER / "run" / "best").eval()
(logs,) = json.loads((FOLDER / "run" / "log.json").read_text()).values()
with torch.no_grad():
    expected = mean(whole, best(**whole).logits, 0.0)
assert abs(logs["valid_log"]["loss"] - expected.item()) < 1e-5
assert abs(logs["valid_log"]["count"] - dataset.num_items.sum()) < 1e-6

names = train.schema["labels"]
labels = [names[index] for row in train for index in row["labels"].tolist() if index >= 0]
weights = dict(zip(names, train.schema["class_weights"], strict=True))
print(json.dumps({"labels": labels, "weights": weights}))
