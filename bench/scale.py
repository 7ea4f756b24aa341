"""Does it stay fast and small: with much data, deep in an epoch, in two processes, by its flags?

python bench/scale.py [--examples 1000000] [--write FOLDER]

Renders projects and runs them, each in a process of its own. Needs no network and no GPU.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import environment, render, table
from one_run import our_arguments
from speed import BERT, CPU, run, write_base, write_texts

SMALL_BERT = {
    **BERT,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}
PLANNED = 10_000_000  # examples whose order is made

# Called in a rendered project, as `python -c`.
DEEP = """
import sys, time
from statistics import median
from accelerate import Accelerator
from model.dataset import generate_dataset
from training.batches import Batches
from training.loading import load_tokenizer
dataset = generate_dataset(sys.argv[1], load_tokenizer(sys.argv[2]))
batches = Batches(dataset, Accelerator(), 32, seed=0)
for share in (0.0, 0.99):
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        next(batches.epoch(0, int(share * len(dataset)) // 32 * 32))
        seconds.append(time.perf_counter() - began)
    print(median(seconds))
"""
PLAN = """
import sys, time
import numpy as np
from training.batches import epoch_order
lengths = np.random.default_rng(0).lognormal(3.6, 0.8, int(sys.argv[1])).astype(np.int64)
began = time.perf_counter()
epoch_order(lengths, 256, 0, 0)
print(time.perf_counter() - began)
"""
# After each step of the loop, the limit takes two over the very batches that the loop has had, the
# one before without clipping and the one before that with it: whatever else the machine does hits
# all alike, and none finds memory of just its sizes. Prints a step of the limit in ms, and what the
# loop takes beside it, without clipping in the limit and with it: the medians of parts of the run.
LOOP = """
import contextlib, sys, time
from statistics import median
import torch
import train
from training.checkpoint import Checkpoints
PART = 50  # steps
steps, seconds = [[]], []  # the batches of each step; what ours, and the two limits, took for them
began = time.perf_counter()
own_step, own_end = train.train_step, Checkpoints.after_step
def noted(micro_batches):
    for inputs, micro in micro_batches:
        steps[-1].append((inputs, micro))
        yield inputs, micro
def limit(model, optimizer, max_grad_norm, batches):
    began = time.perf_counter()
    for inputs, micro in batches:
        model(**inputs, num_items_in_batch=micro.num_items).loss.backward()
    if max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - began
def end_of_step(self, losses):
    global began
    own_end(self, losses)
    ours, optimizer = time.perf_counter() - began, self.optimizer
    found_inf, optimizer.found_inf, optimizer.grad_scale = optimizer.found_inf, None, None
    seconds.append([ours])
    for norm, back in ((None, 2), (1.0, 3)):
        if len(seconds) >= back:
            seconds[-back].append(limit(self.model, optimizer, norm, steps[-back]))
    optimizer.found_inf = found_inf
    steps.append([])
    began = time.perf_counter()
Checkpoints.after_step = end_of_step
train.train_step = lambda accelerator, model, batches: own_step(accelerator, model, noted(batches))
with contextlib.redirect_stdout(sys.stderr):
    train.main(sys.argv[1:])
parts = [seconds[n : n + PART] for n in range(PART, len(seconds) - PART, PART)]
parts = [[sum(column) for column in zip(*part)] for part in parts]
print(1000 * median(bare / PART for _, bare, _ in parts))
print(median(ours / bare - 1 for ours, bare, _ in parts))
print(median(ours / clipped - 1 for ours, _, clipped in parts))
"""


def spec_of(task: str, config: dict, count: int, folder: Path, **options: Any) -> dict[str, Any]:
    """Data, a base model and a project in a new folder, and how to train with them."""
    folder.mkdir(parents=True)
    write_base(task, config, folder / "base")
    write_texts(task, count, folder / "train.jsonl")
    write_texts(task, 32, folder / "valid.jsonl", seed=1)
    return {
        "task": task,
        "has_targets": False,
        "project": str(render(task, folder)),
        "base": str(folder / "base"),
        "train_input": str(folder / "train.jsonl"),
        "valid_input": str(folder / "valid.jsonl"),
        "batch_size": 32,
        "max_len": 128,
        "max_steps": 50,
        "lr": 1e-4,
        "seed": 0,
        "warmup": 0,
        "device": "cpu",
        "flags": [],
        **options,
    }


def in_project(spec: dict, code: str, *arguments: str) -> list[float]:
    """What a piece of code prints that runs in the project."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=spec["project"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return [float(word) for word in done.stdout.split()]


def measure_data(examples: int, folder: Path) -> list[list[str]]:
    """Memory and time by the number of examples."""
    rows = []
    for count in (examples // 10, examples):
        spec = spec_of("classification", SMALL_BERT, count, folder / str(count), max_steps=20)
        first, second = (run("hf-template", spec, folder / str(count)) for _ in range(2))
        begin, deep = in_project(spec, DEEP, spec["train_input"], spec["base"])
        kinds = ("own_bytes", "peak_bytes")
        peaks = (f"{r[k] / 2**20:,.0f}" for k in kinds for r in (first, second))
        starts = (f"{r['first_step_seconds']:.1f}" for r in (first, second))
        rows.append([f"{count:,}", *peaks, *starts, f"{begin:.3f}", f"{deep:.3f}"])
        shutil.rmtree(folder / str(count))
    return rows


def measure_loop(folder: Path) -> list[list[str]]:
    """What the loop takes beside forward, backward and optimizer step."""
    rows = []
    for config, steps in ((SMALL_BERT, 2000), (BERT, 500)):
        size = config["hidden_size"]
        spec = spec_of("classification", config, 32 * 640, folder / str(size), max_len=512)
        spec |= {"max_steps": steps, "outdir": str(folder / str(size) / "run")}
        step, bare, clipped = in_project(spec, LOOP, *our_arguments(spec))
        name = f"{config['num_hidden_layers']} layers, width {size}"
        rows.append([name, f"{step:.0f}", f"{clipped:.1%}", f"{bare:.1%}"])
    return rows


def measure_processes(folder: Path, rounds: int) -> list[list[str]]:
    """One process and two, with a thread each."""
    spec = spec_of("classification", BERT, 32 * 640, folder, max_len=512, max_steps=40)
    rates: dict[int, list[float]] = {1: [], 2: []}
    balance = 0.0
    for _ in range(rounds):
        for processes in rates:
            spec["outdir"] = tempfile.mkdtemp(dir=folder) + "/run"
            spec["batch_size"] = 32 // processes
            results = launched(spec, folder, processes)
            rates[processes].append(sum(r["tokens_per_second"] for r in results))
            tokens = [r["computed_tokens"] for r in results]
            balance = max(balance, max(tokens) / min(tokens) - 1)
    one, two = (statistics.median(r) for r in rates.values())
    return [[f"{one:,.0f}", f"{two:,.0f}", f"{two / one / 2:.0%}", f"{balance:.2%}"]]


def launched(spec: dict, folder: Path, processes: int) -> list[dict[str, float]]:
    """What each process of a run measures; they are started as a launcher starts them."""
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    script = Path(__file__).with_name("one_run.py")
    variables = {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    if processes > 1:
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
        variables["WORLD_SIZE"] = str(processes)
    children = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        command = [sys.executable, str(script), "hf-template", str(path)]
        environ = {**os.environ, **variables, **own}
        children.append(
            subprocess.Popen(
                command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        )
    outputs = [child.communicate()[0] for child in children]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def measure_flags(folder: Path, rounds: int) -> list[list[str]]:
    """Speed and memory with each flag, beside those without, in turns."""
    variants: dict[str, tuple[list[str], dict]] = {
        "none": ([], {}),
        "`--compile`": (["--compile"], {}),
        "`--gradient_checkpointing`": (["--gradient_checkpointing"], {}),
        "bfloat16": ([], {"ACCELERATE_MIXED_PRECISION": "bf16"}),
    }
    rows = []
    for task in ("classification", "causal_lm"):
        size = CPU[task]
        place, options = folder / task, {k: v for k, v in size.items() if k != "config"}
        options["max_steps"] = 30 if task == "classification" else 12
        spec = spec_of(task, size["config"], 32 * 640, place, **options)
        results: dict[str, list[dict]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name, (flags, variables) in variants.items():
                warmup = 20 if "--compile" in flags and task == "classification" else 3
                with_flags = {**spec, "flags": flags, "variables": variables, "warmup": warmup}
                results[name].append(run("hf-template", with_flags, place))
        plain = medians(results["none"])
        for name, measured in results.items():
            rate, peak = medians(measured)
            rows.append([task, name, f"{rate / plain[0]:.2f}", f"{peak / plain[1]:.2f}"])
    return rows


def medians(results: list[dict]) -> tuple[float, float]:
    names = ("tokens_per_second", "peak_bytes")
    rate, peak = (statistics.median(result[name] for result in results) for name in names)
    return rate, peak


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure with much data, processes, and flags.")
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="write scale.md here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = measure_data(args.examples, folder / "data")
        any_project = {"project": str(render("classification", folder / "plan"))}
        (planned,) = in_project(any_project, PLAN, str(PLANNED))
        loop = measure_loop(folder / "loop")
        processes = measure_processes(folder / "processes", args.rounds)
        flags = measure_flags(folder / "flags", args.rounds)
    columns = ["examples", "peak memory of its own at the first start, MiB", "at the second"]
    columns += ["with mapped files at the first", "at the second"]
    columns += ["first start to first step, s", "second", "first batch of an epoch, s"]
    data_table = table(*columns, "first batch at 99 % of it, s", rows=data)
    two = ["one process, tokens/s", "two", "efficiency", "largest difference in tokens"]
    text = f"""# Much data, two processes, and the flags

Made by `python bench/scale.py`. {"; ".join(f"{k} {v}" for k, v in environment().items())}.
A 2-layer BERT of width 128 for the data, else the models of [speed.md](speed.md).

## By the number of examples

At the first start the texts are read and tokenized; at the second their tokens are found cached.
The pages of a mapped file are the system's to take back: they fill what memory is free.

{data_table}
The order of an epoch of {PLANNED:,} examples is made in {planned:.1f} s.

## The loop itself

What `train.py` takes beside the limit: forward pass, backward pass and fused optimizer step over
the same batches, already made, in the same process and in turns, step by step. `train.py` clips
gradients: the limit does so, too, in the one comparison, and does not in the other.

{table("BERT", "the limit, ms a step", "beside it, clipping", "beside it, not clipping", rows=loop)}
## Two processes, a thread each, against one

Classification, batches of 32 over all processes. Tokens are those computed, padding included.

{table(*two, rows=processes)}
## With and without each flag

As a multiple of the same without it, on a CPU.

{table("task", "flag", "speed", "peak memory", rows=flags)}"""
    print(text)
    if args.write:
        (args.write / "scale.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
