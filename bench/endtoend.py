"""Measure the time of whole runs of this template and of other trainers.

python bench/endtoend.py --base classification=FOLDER causal_lm=FOLDER [--rounds 3] [--write FOLDER]

Each system trains one epoch (for causal LM: 16 steps) on the template's sample data, validates,
and saves. Each run is a separate process, and the systems alternate. In --base, FOLDER is the
folder of a pretrained model. Tasks without such a folder use random weights.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from common import ROOT, environment, render, table
from speed import BART

HERE = Path(__file__).parent
SYSTEMS = ["hf-template", "Trainer, tuned", "Accelerate's example"]
PHASES = ["imports", "reading", "building", "checks", "training", "validation", "generation"]
PHASES += ["saving", "pictures", "other", "exit"]
SPECS: dict[str, dict] = {
    "classification": {"batch_size": 32, "max_len": 128, "lr": 5e-5, "max_steps": 0},
    "seq2seq": {"batch_size": 32, "max_len": 64, "lr": 1e-3, "max_steps": 0},
    "causal_lm": {"batch_size": 4, "max_len": 256, "lr": 5e-5, "max_steps": 16},
}
SAMPLING = {"causal_lm": "random"}  # of the tuned Trainer; other tasks: group_by_length
NEW_TOKENS = {"seq2seq": 32}
VALID_ROWS = {"causal_lm": 4}
TINY = "templates/{}/tiny"


def prepare(task: str, base: Path | None, folder: Path) -> dict[str, Any]:
    """Write the data and the base model; return the settings of a run."""
    folder.mkdir()
    data = ROOT / "templates" / task / "data"
    shutil.copy(data / "train.jsonl", folder)
    with (data / "valid.jsonl").open(encoding="utf-8") as lines:
        text = "".join(islice(lines, VALID_ROWS.get(task)))
    (folder / "valid.jsonl").write_text(text, encoding="utf-8")
    if base is None:
        base = folder / "base"
        shutil.copytree(ROOT / TINY.format(task), base)
        if task == "seq2seq":
            config = json.loads((base / "config.json").read_text(encoding="utf-8"))
            kept = {name: v for name, v in config.items() if name.endswith("_token_id")}
            larger = {**BART, "vocab_size": config["vocab_size"], **kept}
            (base / "config.json").write_text(json.dumps(larger), encoding="utf-8")
    return {
        **SPECS[task],
        "task": task,
        "project": str(render(task, folder)),
        "base": str(base.resolve()),
        "train_input": str(folder / "train.jsonl"),
        "valid_input": str(folder / "valid.jsonl"),
        "sampling": SAMPLING.get(task, "group_by_length"),
        "max_new_tokens": NEW_TOKENS.get(task, 0),
    }


def run(system: str, spec: dict, folder: Path) -> dict[str, float]:
    """Run once, without caches of earlier runs; return the total and the output of whole_run.py."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "spec.json"
        path.write_text(json.dumps({**spec, "outdir": f"{scratch}/run"}), encoding="utf-8")
        start = time.time()
        done = subprocess.run(
            [sys.executable, str(HERE / "whole_run.py"), system, str(path)],
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "HF_DATASETS_CACHE": f"{scratch}/cache",
                "ACCELERATE_USE_CPU": "true",
                "BENCH_BEGAN": str(start),
            },
            capture_output=True,
            text=True,
        )
        total = time.time() - start
    if done.returncode:
        raise RuntimeError(f"{system}: {done.stderr[-3000:]}")
    seconds = json.loads(done.stdout.splitlines()[-1])
    seconds["exit"] = total - sum(seconds.get(phase, 0.0) for phase in PHASES)
    return {**seconds, "total": total}


def measure(task: str, base: Path | None, rounds: int, folder: Path) -> dict[str, Any]:
    """Run all systems alternately; return the medians over the rounds."""
    spec = prepare(task, base, folder)
    found: dict[str, list[dict]] = {system: [] for system in SYSTEMS}
    for number in range(rounds):
        for system in SYSTEMS:
            found[system].append(run(system, {**spec, "seed": number}, folder))
            print(task, number, system, found[system][-1], file=sys.stderr, flush=True)
    names = ["total", "first step", "flops", *PHASES]
    return {
        system: {name: statistics.median(r.get(name, 0.0) for r in runs) for name in names}
        for system, runs in found.items()
    }


def matrix_rate(size: int = 1024, rounds: int = 9) -> float:
    """Time a float32 matrix product; return the number of floating-point operations per second."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds)


def markdown(
    results: dict[str, Any], rate: float, args: argparse.Namespace, about: dict[str, str]
) -> str:
    rows = []
    shares = []
    for task, systems in results.items():
        if flops := systems["hf-template"]["flops"]:
            share = flops / rate / systems["hf-template"]["training"]
            shares.append(f"{task} {share:.0%}")
        ours = systems["hf-template"]["total"]
        for system, r in systems.items():
            ratio = f"{r['total'] / ours:.2f}"
            phases = [f"{r[phase]:.1f}" for phase in PHASES]
            rows.append(
                [task, system, f"{r['total']:.1f}", ratio, f"{r['first step']:.1f}"] + phases
            )
    columns = ["task", "system", "total, s", "relative to hf-template", "first step", *PHASES]
    bases = "; ".join(f"{task}: {path.name}" for task, path in args.base.items())
    return f"""# Whole runs

Written by `python bench/endtoend.py`. {"; ".join(f"{k} {v}" for k, v in about.items())}. Seconds
from the command to the end of the process; medians, number of rounds: {args.rounds}. No cache is
kept between runs.

The data are the template's samples. Base models: {bases or "none"}; seq2seq: a 2 + 2-layer BART
(width 256) with random weights. Each run trains one epoch with batches of 32 examples (causal LM:
16 steps with 4 blocks of 256 tokens), validates (seq2seq: and generates at most 32 tokens per
example), and saves. `first step` is the time from the command to the end of the first step. The
columns after it add up to the total. The tuned Trainer has fused AdamW, one loader process and,
except for causal LM, `group_by_length`; for seq2seq, it also has `predict_with_generate`.

{table(*columns, rows=rows)}
FLOPs per second of hf-template in training, relative to those of a float32 matrix product on this
machine ({rate / 1e9:.0f} GFLOP/s): {", ".join(shares)}. The FLOPs of training are computed by the
formula of `training/flops.py`, which does not cover encoder-decoder models.
"""


def named_folder(text: str) -> tuple[str, Path]:
    task, _, folder = text.partition("=")
    if task not in SPECS or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(
            f"{text}: expected TASK=FOLDER, with an existing FOLDER and one of {', '.join(SPECS)}"
        )
    return task, Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--base",
        type=named_folder,
        nargs="+",
        default=[],
        metavar="TASK=FOLDER",
        help="pretrained base models",
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each system")
    parser.add_argument(
        "--task", choices=list(SPECS), action="append", help="measure only this task"
    )
    parser.add_argument("--write", type=Path, help="folder for endtoend.md and endtoend.json")
    args = parser.parse_args()
    args.base = dict(args.base)
    with tempfile.TemporaryDirectory() as folder:
        results = {
            task: measure(task, args.base.get(task), args.rounds, Path(folder) / task)
            for task in args.task or SPECS
        }
    about = environment()
    rate = matrix_rate()
    kept = args.write / "endtoend.json" if args.write else Path()
    if args.task and kept.is_file():  # keep the results of tasks measured earlier
        earlier = json.loads(kept.read_text(encoding="utf-8"))["tasks"] | results
        results = {task: earlier[task] for task in SPECS if task in earlier}
    text = markdown(results, rate, args, about)
    print(text)
    if args.write:
        (args.write / "endtoend.md").write_text(text, encoding="utf-8")
        report = {
            "environment": about,
            "matrix_rate": rate,
            "rounds": args.rounds,
            "tasks": results,
        }
        kept.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
