"""Measure whether results depend on splits, processes and kills; compare with other trainers.

python bench/exactness.py [--json FILE] [--markdown FILE]

The script renders a project for each of three tasks. It runs each project, transformers.Trainer and
the loop of Accelerate's documentation on the same examples. The script needs no network and no GPU.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from itertools import islice, product
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    ACCELERATE_USE_CPU="true",
    TOKENIZERS_PARALLELISM="false",
)

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import torchmetrics  # noqa: E402, F401  (imported here once, for all processes)
from common import environment, render, table  # noqa: E402
from peers import STOCK, AcceleratePeer, OurModelInTrainer, TrainerPeer  # noqa: E402
from processes import recorded, run_in  # noqa: E402
from systems import (  # noqa: E402
    ACCUMULATION,
    GLOBAL_BATCH_SIZE,
    MAX_LENGTH,
    SAVED_STEP,
    STEPS_PER_EPOCH,
    Fit,
    Ours,
    System,
)
from transformers import AutoTokenizer  # noqa: E402

SYSTEMS = [Ours, TrainerPeer, AcceleratePeer, OurModelInTrainer]
NAMES = [system.name for system in SYSTEMS]
SPLITS = [(1, 8, 1), (1, 2, 4), (1, 1, 8), (2, 2, 2)]  # processes, micro-batch, accumulation
VALID_EXAMPLES = 21
VALID_SIZES = {1: [1, 2, 3, 4, 8, 64], 2: [1, 2, 4]}  # batch sizes by number of processes
EXAMPLES = STEPS_PER_EPOCH * GLOBAL_BATCH_SIZE  # in an epoch of the killed runs

Results = dict[str, Any]


def write_sample(task: str, project: Path, folder: Path) -> None:
    """Write the training and validation data, and the base model with and without dropout."""
    for name, dropout in (("tiny", 0.0), ("tiny-dropout", 0.1)):
        (folder / name).mkdir(parents=True)
        for file in (project / "tiny").iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        config |= {key: dropout for key in config if "dropout" in key}
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    for part in ("train", "valid"):
        with (project / "data" / f"{part}.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in islice(lines, 4 * EXAMPLES)]
        if task == "causal_lm":
            # Use as many short texts, each followed by an EOS token, as fit into the blocks.
            rows = [{"text": row["text"][: 2 * MAX_LENGTH]} for row in rows]
            lengths = [len(tokenizer(row["text"])["input_ids"]) + 1 for row in rows]
            rows = rows[: int((np.cumsum(lengths) <= EXAMPLES * (MAX_LENGTH - 1)).sum())]
        else:
            rows = rows[:EXAMPLES]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")


def compare_gradients(systems: list[System], log: Path) -> Results:
    """Compare the gradients of each system for all splits with a reference gradient.

    The reference is the gradient of the same system for the first split. For the template's Model
    in Trainer, the reference is the gradient of the template's own loop for the first split.

    Returns:
        For each system: the norm of the gradient for each split, and the largest norm of a
        difference from the reference. Both are relative to the norm of the reference.
    """
    results: Results = {}
    reference: dict[str, np.ndarray] = {}
    for system in systems:
        gradients = [run_in(split[0], log, system.gradient, *split[1:]) for split in SPLITS]
        reference[system.name] = gradients[0]
        whole = reference[Ours.name if isinstance(system, OurModelInTrainer) else system.name]
        norm = np.linalg.norm(whole)
        results[system.name] = {
            "norms": [float(np.linalg.norm(g) / norm) for g in gradients],
            "difference": max(float(np.linalg.norm(g - whole) / norm) for g in gradients),
        }
    return results


def compare_valid_losses(systems: list[System], log: Path) -> Results:
    """Measure the validation loss for each system, number of processes and eval batch size."""
    return {
        system.name: {
            str(processes): run_in(processes, log, system.valid_losses, sizes, VALID_EXAMPLES)
            for processes, sizes in VALID_SIZES.items()
        }
        for system in systems
    }


def compare_resumed(systems: list[System], folder: Path, log: Path) -> Results:
    """Compare killed and resumed runs with uninterrupted runs.

    Each run saves in the middle of the last epoch. The run that is resumed later is killed in the
    step after this save.

    Returns:
        The results of the comparison, for each system and number of processes.
    """
    results: Results = {system.name: {} for system in systems}
    saved, epoch_start = SAVED_STEP * ACCUMULATION, STEPS_PER_EPOCH * ACCUMULATION
    for system, processes in product(systems, (1, 2)):
        place = folder / f"{system.name} {processes}"
        batch_size = GLOBAL_BATCH_SIZE // ACCUMULATION // processes
        whole = Fit(place / "whole", "whole", batch_size)
        killed = Fit(place / "run", "killed", batch_size, last_pass=saved + 1)
        resumed = Fit(place / "run", "resumed", batch_size, resume=True)
        for fit in (whole, killed):
            fit.folder.mkdir(parents=True)
        expected = run_in(processes, log, system.fit, whole)
        run_in(processes, log, system.fit, killed, killed=True)
        weights = run_in(processes, log, system.fit, resumed)
        passes = [
            ids for rank in recorded(place / "run", "killed") for ids in rank[:saved][epoch_start:]
        ]
        passes += [ids for rank in recorded(place / "run", "resumed") for ids in rank]
        seen = Counter(index for ids in passes for index in ids)
        results[system.name][str(processes)] = {
            "identical": bool(np.array_equal(weights, expected)),
            "difference": float(np.abs(weights - expected).max()),
            "seen_twice": sum(times > 1 for times in seen.values()),
            "never_seen": EXAMPLES - len(seen),
        }
    return results


def measure(folder: Path) -> Results:
    """Run all comparisons for the tasks of STOCK."""
    log, results = folder / "log", {}
    for task in STOCK:
        project, sample = render(task, folder), folder / f"{task}-sample"
        write_sample(task, project, sample)
        systems = [system(task, project, sample) for system in SYSTEMS]
        peers = [system for system in systems if not isinstance(system, OurModelInTrainer)]
        results[task] = {
            "gradient": compare_gradients(systems, log),
            "resume": compare_resumed(peers, folder / f"{task}-runs", log),
            "valid_loss": compare_valid_losses(systems, log),
        }
        print(f"{task}: done", file=sys.stderr)
    return results


def is_exact(results: Results) -> bool:
    """Return whether the template's results do not depend on splits, processes or kills."""
    return all(
        task["gradient"][Ours.name]["difference"] < 1e-5
        and all(
            run["identical"] and run["seen_twice"] == run["never_seen"] == 0
            for run in task["resume"][Ours.name].values()
        )
        and spread(sum(task["valid_loss"][Ours.name].values(), [])) < 1e-6
        for task in results.values()
    )


def spread(losses: list[float]) -> float:
    return (max(losses) - min(losses)) / min(losses)


def resumed_cell(run: Results) -> str:
    weights = "identical" if run["identical"] else f"differ by up to {run['difference']:.1e}"
    return f"{weights}; {run['seen_twice']} / {run['never_seen']}"


def markdown(results: Results, about: dict[str, str]) -> str:
    gradients, resumed, losses = [], [], []
    for task, parts in results.items():
        for number, (processes, size, accumulation) in enumerate(SPLITS):
            split = f"{processes} × {size} × {accumulation}"
            norms = [f"{parts['gradient'][name]['norms'][number]:.3f}" for name in NAMES]
            gradients.append([task, split, *norms])
        differences = [f"{parts['gradient'][name]['difference']:.1e}" for name in NAMES]
        gradients.append([task, "largest relative difference", *differences])
        for count in map(str, VALID_SIZES):
            runs = [run[count] for run in parts["resume"].values()]
            resumed.append([task, count, *map(resumed_cell, runs)])
            values = [parts["valid_loss"][name][count] for name in NAMES]
            losses.append([task, count, *(f"{min(v):.6f} – {max(v):.6f}" for v in values)])
        spreads = [spread(sum(parts["valid_loss"][name].values(), [])) for name in NAMES]
        losses.append([task, "largest relative difference", *(f"{value:.1e}" for value in spreads)])
    sizes = {processes: ", ".join(map(str, sizes)) for processes, sizes in VALID_SIZES.items()}
    return f"""# Exactness of training results

Written by `python bench/exactness.py`. {"; ".join(f"{k} {v}" for k, v in about.items())}.

"Trainer" is `transformers.Trainer` with its defaults, except for the learning rate and, where
gradients are compared, without clipping. "Accelerate's recipe" is the training loop of
Accelerate's guide to gradient accumulation and of its `complete_nlp_example.py`, with
`accumulate`, `save_state`, `load_state` and `skip_first_batches`. (Another section of the guide,
on samples of variable size, normalises the loss by hand; this is not measured here.) The
validation loss of "Accelerate's recipe" is computed as in `run_clm_no_trainer.py` of
transformers. "Trainer" and "Accelerate's recipe" train the stock model with the configuration of
the template's tiny base model. In the column "our Model in Trainer", Trainer trains the
template's Model instead.

## The gradient of one step on the same {GLOBAL_BATCH_SIZE} examples

A split is given as processes × examples in a micro-batch × accumulation. The first rows of each
task have the norm of the gradient, relative to the norm for the split 1 × 8 × 1. The last row has
the largest norm of a difference from the gradient for this split, relative to the norm of that
gradient. For the Model in Trainer, the reference is the gradient in the template's own loop.
Dropout is off.

{table("task", "split", *NAMES, rows=gradients)}
## Killed in the middle of an epoch, and resumed

Each cell compares the final weights with those of an uninterrupted run. It also has two numbers:
how many of the {EXAMPLES} examples of the epoch were used twice / never. Dropout is on.

{table("task", "processes", *NAMES[:-1], rows=resumed)}
## Validation loss for different evaluation batch sizes

The cells have the smallest and the largest loss reported for the same {VALID_EXAMPLES} examples
and weights, for the evaluation batch sizes {sizes[1]} in one process and {sizes[2]} in two
processes. The last row of each task has the difference of the largest and the smallest loss,
relative to the smallest. The weights are random, not trained.

{table("task", "processes", *NAMES, rows=losses)}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # so that files of killed processes are deleted
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        results = measure(Path(folder))
    about = environment()
    text = markdown(results, about)
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    if args.json:
        report = {
            "environment": about,
            "splits": SPLITS,
            "valid_sizes": VALID_SIZES,
            "tasks": results,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if is_exact(results) else 1


if __name__ == "__main__":
    sys.exit(main())
