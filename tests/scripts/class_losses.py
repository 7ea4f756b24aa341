"""Check the loss of the task classification, with weights and smoothing, against that of torch.

python class_losses.py FOLDER    prints, as JSON, the weights of the labels in FOLDER/rows.jsonl,
                                 and then the error for each refused option
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.loss import compute_loss
from model.modeling import Model
from model.prediction import Predictor
from train import main
from training.loading import load_tokenizer

FOLDER = Path(sys.argv[1])
ROWS = FOLDER / "rows.jsonl"
KIND = "single_label_classification"
torch.manual_seed(0)

# For each combination of weights and smoothing, compare loss and gradient of a batch, computed in
# one part and in two parts.
logits = torch.randn(7, 4, requires_grad=True)
exact = logits.detach().double().requires_grad_()
labels = torch.tensor([0, 3, 1, 1, 2, 0, 0])
some = torch.rand(4)
for weights in (None, some):
    for smoothing in (0.0, 0.3):
        doubled = None if weights is None else weights.double()
        expected = cross_entropy(exact, labels, doubled, label_smoothing=smoothing)
        whole = compute_loss(KIND, logits, labels, None, weights, smoothing)
        items = 7 if weights is None else weights[labels].sum()
        parts = [
            compute_loss(KIND, logits[rows], labels[rows], items, weights, smoothing)
            for rows in (slice(2), slice(2, 7))
        ]
        (gradient,) = torch.autograd.grad(expected, exact)
        for loss in (whole, sum(parts)):
            torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
            (found,) = torch.autograd.grad(loss, logits)
            torch.testing.assert_close(found.double(), gradient, rtol=1e-5, atol=1e-8)

# In regression, no value marks a row without a label.
values = torch.tensor([-100.0, 3.0])
loss = compute_loss("regression", torch.zeros(2, 1), values, None)
torch.testing.assert_close(loss, values.square().mean())

# The model uses the weights of the data set, and label smoothing in training mode only.
dataset = generate_dataset(ROWS, class_weight="balanced")
arguments = {name: dataset.schema[name] for name in ("labels", "problem_type")}
model = Model(ModelConfig(**arguments, label_smoothing=0.1))
for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
batch = dataset.collate([dataset[index] for index in range(len(dataset))])
weights = torch.tensor(dataset.schema["class_weights"])
for mode, smoothing in ((True, 0.1), (False, 0.0)):
    outputs = model.train(mode)(**batch)
    expected = cross_entropy(outputs.logits, batch["labels"], weights, label_smoothing=smoothing)
    torch.testing.assert_close(outputs.loss, expected)
    items = dataset.num_items.sum()
    torch.testing.assert_close(model(**batch, num_items_in_batch=items).loss, expected)

# A file that is read with the schema of a data set gets the weights of that data set.
again = generate_dataset(ROWS, **dataset.schema)
assert again.schema == dataset.schema
assert again.fingerprint == dataset.fingerprint
assert generate_dataset(ROWS).fingerprint != dataset.fingerprint
print(json.dumps(dataset.schema["class_weights"]))

BALANCED = ["--class_weight", "balanced"]
SMOOTHED = ["--label_smoothing", "0.1"]
WRONG: list[tuple[object, list[str]]] = [
    (["a", "b"], BALANCED),
    (0.5, BALANCED),
    (["a", "b"], SMOOTHED),
    ("a", ["--label_smoothing", "1.5"]),
    ("a", ["--class_weight", "inverse"]),
]


def error_of(*arguments: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        try:
            main([*arguments, f"--outdir={FOLDER / 'run'}"])
        except (ValueError, SystemExit) as error:  # an error of the project, or of argparse
            return printed.getvalue().splitlines()[-1] if error.args == (2,) else str(error)
    raise AssertionError(f"{arguments} is not refused")


for label, options in WRONG:
    rows = [{"text": "see it", "label": label}, {"text": "see", "label": label}]
    file = FOLDER / "wrong.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(error_of(f"--train_input={file}", f"--valid_input={file}", *options))
    assert not (FOLDER / "run").exists() or not list((FOLDER / "run").iterdir())
try:
    Predictor(model, load_tokenizer("tiny"), 48, {}, threshold=0.3)
except ValueError as error:
    print(error)
