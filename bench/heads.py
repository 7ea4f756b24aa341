"""Compare the classification head of the architecture with mean pooling, on your data.

python bench/heads.py --model_id FOLDER --data trec=FOLDER sms=FOLDER --json FILE --markdown FILE

The script renders three classification projects: an unchanged one, one with the `model/` of
docs/recipes/head and one with the `model/` of docs/recipes/pooling. It trains all three with the
same arguments. A data folder must contain train.jsonl and valid.jsonl, with the columns text and
label.

The result of each run is added to the JSON file, so an interrupted benchmark can be restarted: if
the file has a result with the same data set, --rows, head and seed, the run is not repeated. For
other values of the other arguments, use another file.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from itertools import islice, product
from pathlib import Path

from common import ROOT, environment, render, table

RECIPES = {
    "stock": None,
    "stock, higher learning rate for the head": "head",
    "mean pooling": "pooling",
}
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
}
SCORES = ("loss", "accuracy", "macro_f1")


def first_rows(source: Path, count: int, target: Path) -> None:
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as file:
        file.writelines(islice(lines, count))


def train(variant: str, data: Path, seed: int, args: argparse.Namespace) -> list[dict]:
    """Train once; return the losses and scores of each validation."""
    with tempfile.TemporaryDirectory() as folder:
        project = render("classification", Path(folder))
        if recipe := RECIPES[variant]:
            model = ROOT / "docs" / "recipes" / recipe / "model"
            shutil.copytree(model, project / "model", dirs_exist_ok=True)
        first_rows(data / "train.jsonl", args.rows, project / "data" / "train.jsonl")
        shutil.copy(data / "valid.jsonl", project / "data" / "valid.jsonl")
        command = [sys.executable, "train.py", "--model_id", str(args.model_id.resolve())]
        command += ["--seed", str(seed), "--max_len", "64", "--epochs", str(args.epochs)]
        subprocess.run([*command, *args.arguments], cwd=project, env=ENVIRONMENT, check=True)
        log = json.loads((project / "outputs" / "log.json").read_text(encoding="utf-8"))
    return [entry["valid_log"] for entry in log.values()]


def markdown(results: list[dict], args: argparse.Namespace) -> str:
    groups: dict[tuple[str, int, str], list[list[dict]]] = {}
    for result in results:
        key = (result["data"], result["rows"], result["variant"])
        groups.setdefault(key, []).append(result["valid"])
    rows = []
    for key in sorted(groups, key=lambda key: (*key[:2], list(RECIPES).index(key[2]))):
        runs = groups[key]
        for epoch in range(args.epochs):
            values = [[run[epoch][score] for run in runs] for score in SCORES]
            cells = [f"{statistics.mean(v):.4f} ({min(v):.4f} to {max(v):.4f})" for v in values]
            rows.append([*key, epoch + 1, len(runs), *cells])
    further = " ".join(args.arguments) or "none"
    return f"""# The architecture's head and mean pooling

Written by `python bench/heads.py`. {"; ".join(f"{k} {v}" for k, v in environment().items())}.

Base model: {args.model_id.name}. Training data: the first rows of each data set, at most as many
as in the column "rows". Validation data: all rows. Arguments: `--max_len 64`; further arguments:
{further}. Each cell has the mean over the seeds, with the smallest and the largest value in
brackets.

{table("data", "rows", "head", "epoch", "seeds", *SCORES, rows=rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model_id", type=Path, required=True, help="folder of an encoder")
    parser.add_argument("--data", nargs="+", required=True, help="data sets: NAME=FOLDER")
    parser.add_argument("--rows", type=int, default=1600, help="maximum training rows per data set")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--json", type=Path, default=Path("heads.json"), help="file for the results"
    )
    parser.add_argument("--markdown", type=Path, help="file for the table")
    args, args.arguments = parser.parse_known_args()
    results = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else []
    for seed, pair, variant in product(args.seeds, args.data, RECIPES):
        name, _, folder = pair.partition("=")
        key = {"data": name, "rows": args.rows, "variant": variant, "seed": seed}
        if any(key.items() <= result.items() for result in results):
            continue
        results.append({**key, "valid": train(variant, Path(folder), seed, args)})
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = markdown(results, args)
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
