"""Compare runs with and without `--class_weight balanced` on data with rare classes.

python bench/class_weight.py --model_id FOLDER --data FOLDER --markdown FILE

The script makes classes rare: it trains on the first rows of each class, at most as many as --sizes
gives for this class. The folder given by --data must contain train.jsonl and valid.jsonl, with the
columns text and label.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path

from common import environment, render, table

VARIANTS: dict[str, list[str]] = {
    "none": [],
    "balanced": ["--class_weight", "balanced"],
}
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
}
SCORES = ("loss", "accuracy", "macro_f1", "ece")


def skew(source: Path, sizes: list[int], target: Path) -> dict[str, int]:
    """Write the first rows of each class, and return the number of rows by class.

    Args:
        sizes: Maximum number of rows for each class, in order of decreasing frequency in `source`.
    """
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    frequent = Counter(row["label"] for row in rows).most_common()
    limits = {name: size for (name, _), size in zip(frequent, sizes, strict=True)}
    kept: Counter[str] = Counter()
    with target.open("w", encoding="utf-8") as file:
        for row in rows:
            if kept[row["label"]] < limits[row["label"]]:
                kept[row["label"]] += 1
                file.write(json.dumps(row) + "\n")
    return dict(kept.most_common())


def train(variant: str, project: Path, seed: int, args: argparse.Namespace) -> dict:
    """Train once; return the losses and scores of the last validation."""
    outdir = project / f"{variant}-{seed}"
    command = [sys.executable, "train.py", "--model_id", str(args.model_id.resolve())]
    command += ["--seed", str(seed), "--max_len", "64", "--epochs", str(args.epochs)]
    command += ["--lr", str(args.lr), "--outdir", str(outdir), *VARIANTS[variant]]
    subprocess.run(command, cwd=project, env=ENVIRONMENT, check=True)
    log = json.loads((outdir / "log.json").read_text(encoding="utf-8"))
    return list(log.values())[-1]["valid_log"]


def markdown(
    results: dict[str, list[dict]], sizes: dict[str, int], args: argparse.Namespace
) -> str:
    rows = []
    for variant, runs in results.items():
        values = [[run[score] for run in runs] for score in SCORES]
        cells = [f"{statistics.mean(v):.4f} ({min(v):.4f} to {max(v):.4f})" for v in values]
        rows.append([variant, len(runs), *cells])
    counts = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return f"""# Balanced class weights for rare classes

Written by `python bench/class_weight.py`.
{"; ".join(f"{k} {v}" for k, v in environment().items())}.

Base model: {args.model_id.name}. Training data: the first rows of each class of {args.data.name}:
{counts}. Validation data: all rows. Arguments: `--max_len 64 --epochs {args.epochs} --lr
{args.lr}`. The scores are those after the last epoch. Each cell has the mean over the seeds, with
the smallest and the largest value in brackets. The losses of the two rows are not comparable:
with balanced weights, the validation loss is weighted, too.

{table("class weight", "seeds", *SCORES, rows=rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model_id", type=Path, required=True, help="folder of an encoder")
    parser.add_argument("--data", type=Path, required=True, help="folder with the data")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[400, 200, 100, 50, 25, 12],
        help="maximum number of training examples for each class, the most frequent class first",
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--markdown", type=Path, help="file for the table")
    args = parser.parse_args()
    results: dict[str, list[dict]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        project = render("classification", Path(folder))
        sizes = skew(args.data / "train.jsonl", args.sizes, project / "data" / "train.jsonl")
        valid = (args.data / "valid.jsonl").read_text(encoding="utf-8")
        (project / "data" / "valid.jsonl").write_text(valid, encoding="utf-8")
        for seed, variant in product(args.seeds, VARIANTS):
            results[variant].append(train(variant, project, seed, args))
    text = markdown(results, sizes, args)
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
