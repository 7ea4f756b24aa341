"""Check the calibration error, thresholds and score table of classification by their definitions.

python class_scores.py FOLDER    prints, for examples with one label, the table, the labels and the
                                 predictions; then trains on FOLDER/several.jsonl, with several
                                 labels per example, and predicts with the chosen thresholds
"""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import export
import predict
import train
from model.metrics import THRESHOLDS, Scores

rng = np.random.default_rng(0)
FOLDER = Path(sys.argv[1])
NAMES = {0: "a", 1: "b|c", 2: "d"}


def scores_of(kind: str, logits: torch.Tensor, labels: torch.Tensor, size: int) -> Any:
    config = SimpleNamespace(problem_type=kind, num_labels=3, id2label=NAMES)
    scores: Any = Scores(SimpleNamespace(config=config), None, torch.device("cpu"))  # type: ignore[arg-type]
    scores.reset()
    for rows in torch.arange(len(labels)).split(size):
        scores.update(SimpleNamespace(logits=logits[rows]), {"labels": labels[rows]})
    return scores


# One label per example: compute ECE by a loop over the bins.
logits = torch.from_numpy(rng.normal(scale=2.0, size=(500, 3))).float()
labels = torch.from_numpy(rng.integers(0, 3, 500))
probabilities = logits.softmax(-1).double().numpy()
confidence = probabilities.max(1)
is_correct = probabilities.argmax(1) == labels.numpy()
expected = 0.0
for low in np.arange(15) / 15:
    inside = (confidence > low) & (confidence <= low + 1 / 15)
    if inside.any():
        gap = abs(is_correct[inside].mean() - confidence[inside].mean())
        expected += inside.mean() * gap
for size in (500, 7):
    scores = scores_of("single_label_classification", logits, labels, size)
    found = scores.compute(0.0)
    assert abs(found["ece"] - expected) < 1e-6, (found, expected)
assert 0.1 < expected < 0.9
assert scores.predict_options() == {}
pairs = [labels.tolist(), probabilities.argmax(1).tolist()]
print(json.dumps([scores.table(), pairs]))

# Several labels per example: no threshold has a higher F1 than the chosen one.
several = torch.from_numpy((rng.random((400, 3)) < [0.5, 0.1, 0.0]).astype("float32"))
logits = torch.from_numpy(rng.normal(size=(400, 3))).float() + 2 * several - 1


def f1_of(label: int, threshold: float) -> float:
    predicted = logits[:, label].sigmoid() > torch.tensor(threshold)
    correct = (predicted & several[:, label].bool()).sum().item()
    return 2 * correct / max(1.0, (predicted.sum() + several[:, label].sum()).item())


for size in (400, 9):
    scores = scores_of("multi_label_classification", logits, several, size)
    found = scores.compute(0.0)
    chosen = scores.predict_options()["threshold"]
    assert list(chosen) == list(NAMES.values())
    reached = [f1_of(label, chosen[name]) for label, name in NAMES.items()]
    for label in NAMES:
        highest = max(f1_of(label, threshold) for threshold in THRESHOLDS.tolist())
        assert reached[label] == highest
    assert abs(found["tuned_macro_f1"] - np.mean(reached)) < 1e-9
    assert found["tuned_macro_f1"] > found["macro_f1"]
    assert chosen["d"] == 0.5  # this label has no example
    for value, row in zip(reached, scores.table().values(), strict=True):
        assert abs(row["f1"] - value) < 1e-5

# The chosen thresholds are saved, and predict.py uses them unless --threshold is given.
ROWS = FOLDER / "several.jsonl"
BEST = FOLDER / "run" / "best"
data = [f"--{name}_input={ROWS}" for name in ("train", "valid")]
choice = ["--metric_for_best_model", "tuned_macro_f1", "--epochs", "4"]
train.main([*data, *choice, f"--outdir={FOLDER / 'run'}"])
state = json.loads((BEST / "training_state.json").read_text())
chosen = state["predict_options"]["threshold"]
assert set(chosen.values()) != {0.5}
card = (BEST / "README.md").read_text()
assert "|  | precision | recall | f1 | support | threshold |" in card
assert f"| 40 | {chosen['common']:.3f} |" in card


def macro_f1_with(thresholds: dict[str, float], *options: str) -> float:
    output = FOLDER / "out.jsonl"
    files = [f"--checkpoint={BEST}", f"--input={ROWS}", f"--output={output}"]
    predict.main([*files, *options])
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    found = [json.loads(line) for line in output.read_text().splitlines()]
    f1 = []
    for name, threshold in thresholds.items():
        given = [name in row["prediction"] for row in found]
        assert given == [row["scores"][name] > threshold for row in found]
        labels = [name in row["label"] for row in rows]
        correct = sum(a and b for a, b in zip(given, labels, strict=True))
        f1.append(2 * correct / (sum(given) + sum(labels)))
    return float(np.mean(f1))


assert abs(macro_f1_with(chosen) - state["best"]["tuned_macro_f1"]) < 1e-6
assert macro_f1_with(dict.fromkeys(chosen, 0.6), "--threshold", "0.6") < macro_f1_with(chosen)

# export.py copies the thresholds. predict.py also reads them from training_state.json, because
# earlier versions saved them only in this file.
export.main([f"--checkpoint={BEST}", f"--output={FOLDER / 'exported'}"])
OLD = FOLDER / "old"
shutil.copytree(BEST, OLD)
(OLD / "predictor_config.json").unlink()
assert not (FOLDER / "exported" / "training_state.json").exists()
for checkpoint in (FOLDER / "exported", OLD):
    assert macro_f1_with(chosen, f"--checkpoint={checkpoint}") == macro_f1_with(chosen)
