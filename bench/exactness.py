"""Does the result of training depend on how it was run? This template beside its peers.

python bench/exactness.py [--json FILE] [--markdown FILE]

Renders a project for each task, and runs it, transformers.Trainer and the loop that Accelerate
documents on the same examples. Needs no network and no GPU.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    ACCELERATE_USE_CPU="true",
    TOKENIZERS_PARALLELISM="false",
)
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # Cookiecutter finds hooks/hf_ext.py like this

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import torchmetrics  # noqa: E402, F401  (once here, and not in every process)
from cookiecutter.main import cookiecutter  # noqa: E402
from processes import recorded, run_in  # noqa: E402
from systems import (  # noqa: E402
    GLOBAL_BATCH_SIZE,
    MAX_LENGTH,
    SAVED_STEP,
    STEPS_PER_EPOCH,
    AcceleratePeer,
    Fit,
    Ours,
    OurModelInTrainer,
    System,
    TrainerPeer,
)
from transformers import AutoTokenizer  # noqa: E402

SYSTEMS = [Ours, TrainerPeer, AcceleratePeer, OurModelInTrainer]
SPLITS = [(1, 8, 1), (1, 2, 4), (1, 1, 8), (2, 2, 2)]  # processes, micro-batch, accumulation
VALID_EXAMPLES = 21
VALID_SIZES = {Ours: [1, 3, 8, 64]}  # evaluation batch sizes of one process
OTHER_VALID_SIZES = [1, 2, 4, 8]
TOLERANCE = {"gradient": 1e-5, "valid": 1e-6}


def render(task: str, folder: Path) -> Path:
    return Path(
        cookiecutter(
            str(ROOT),
            no_input=True,
            extra_context={"task": task, "project_slug": task},
            output_dir=str(folder),
            default_config={"replay_dir": str(folder), "cookiecutters_dir": str(folder)},
        )
    )


def write_sample(task: str, project: Path, folder: Path) -> None:
    """Write 48 examples to learn from, some to validate on, and the base model without weights."""
    for name, dropout in (("tiny", 0.0), ("tiny-dropout", 0.1)):
        (folder / name).mkdir(parents=True)
        for file in (project / "tiny").iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        config |= {key: dropout for key in config if "dropout" in key}
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    count = STEPS_PER_EPOCH * GLOBAL_BATCH_SIZE
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    for part in ("train", "valid"):
        with (project / "data" / f"{part}.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in islice(lines, 4 * count)]
        if task == "causal_lm":
            # Texts of less than a block each, as many as fill 48 blocks and no 49th.
            rows = [{"text": row["text"][: 2 * MAX_LENGTH]} for row in rows]
            lengths = [len(tokenizer(row["text"])["input_ids"]) for row in rows]
            whole = np.cumsum(lengths) <= count * (MAX_LENGTH - 1)
            rows = rows[: int(whole.sum())]
        else:
            rows = rows[:count]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")


def compare_gradients(systems: list[System], log: Path) -> dict[str, dict[str, Any]]:
    """For each system: the norms by split, and how far the others are from the first of them."""
    results = {}
    for system in systems:
        gradients = {
            f"{processes} x {batch_size} x {accumulation}": run_in(
                processes, log, system.gradient, batch_size, accumulation
            )
            for processes, batch_size, accumulation in SPLITS
        }
        whole, *others = [vector.astype(np.float64) for vector in gradients.values()]
        results[system.name] = {
            "norms": {split: float(np.linalg.norm(g)) for split, g in gradients.items()},
            "difference": max(
                float(np.linalg.norm(other - whole) / np.linalg.norm(whole)) for other in others
            ),
        }
    return results


def compare_valid_losses(systems: list[System], log: Path) -> dict[str, dict[str, float]]:
    """For each system: the validation loss it gives by processes and evaluation batch size."""
    results = {}
    for system in systems:
        sizes = {1: VALID_SIZES.get(type(system), OTHER_VALID_SIZES), 2: [2]}
        results[system.name] = {
            f"{processes} x {size}": loss
            for processes in sizes
            for size, loss in zip(
                sizes[processes],
                run_in(processes, log, system.valid_losses, sizes[processes], VALID_EXAMPLES),
                strict=True,
            )
        }
    return results


def compare_resumed(systems: list[System], folder: Path, log: Path) -> dict[str, dict[str, Any]]:
    """For each system: what a kill in the middle of the second epoch and a resumption change."""
    results = {}
    for system in systems:
        for processes in (1, 2):
            runs = folder / f"{system.name}-{processes}"
            split = (GLOBAL_BATCH_SIZE // 2 // processes, 2)
            saved = 2 * SAVED_STEP
            killed = Fit(runs, "killed", *split, last_pass=saved + 1)
            resumed = Fit(runs, "resumed", *split, resume=True)
            whole = Fit(runs.with_suffix(".whole"), "whole", *split)
            for run in (whole, killed):
                run.folder.mkdir(parents=True)
            expected = run_in(processes, log, system.fit, whole)
            run_in(processes, log, system.fit, killed, killed=True)
            weights = run_in(processes, log, system.fit, resumed)
            seen: Counter[int] = Counter()
            for rank, passes in enumerate(recorded(runs, "killed")):
                epoch = passes[2 * STEPS_PER_EPOCH : saved] + recorded(runs, "resumed")[rank]
                seen.update(index for ids in epoch for index in ids)
            results[f"{system.name}, {processes}"] = {
                "identical": bool(np.array_equal(weights, expected)),
                "difference": float(np.abs(weights - expected).max()),
                "twice": sum(times > 1 for times in seen.values()),
                "never": STEPS_PER_EPOCH * GLOBAL_BATCH_SIZE - len(seen),
            }
    return results
