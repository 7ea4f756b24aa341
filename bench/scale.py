"""Measure speed and memory with much data, late in an epoch, in two processes, and with flags.

python bench/scale.py [--examples 1000000] [--write FOLDER]

Renders projects and runs each in its own process. Needs no network and no GPU.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
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
PLANNED = 10_000_000  # examples in an epoch whose order is timed
IN_PROJECT = Path(__file__).parent / "in_project"


def spec_of(task: str, config: dict, count: int, folder: Path, **options: Any) -> dict[str, Any]:
    """Create data, a base model and a project in a new folder; return how to train with them."""
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


def in_project(spec: dict, script: str, *arguments: str) -> list[float]:
    """Return the numbers that a script of in_project/ prints in the folder of a project."""
    done = subprocess.run(
        [sys.executable, str(IN_PROJECT / script), *arguments],
        cwd=spec["project"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return [float(word) for word in done.stdout.split()]


def measure_data(examples: int, folder: Path) -> list[list[str]]:
    """Measure memory and time by the number of examples."""
    rows = []
    for count in (examples // 10, examples):
        spec = spec_of("classification", SMALL_BERT, count, folder / str(count), max_steps=20)
        first, second = (run("hf-template", spec, folder / str(count)) for _ in range(2))
        begin, deep = in_project(spec, "deep.py", spec["train_input"], spec["base"])
        kinds = ("own_bytes", "peak_bytes")
        peaks = (f"{r[k] / 2**20:,.0f}" for k in kinds for r in (first, second))
        starts = (f"{r['first_step_seconds']:.1f}" for r in (first, second))
        rows.append([f"{count:,}", *peaks, *starts, f"{begin:.3f}", f"{deep:.3f}"])
        shutil.rmtree(folder / str(count))
    return rows


def measure_order(folder: Path) -> list[list[str]]:
    """Measure the time to compute the order of an epoch."""
    project = {"project": str(render("classification", folder))}
    (seconds,) = in_project(project, "order.py", str(PLANNED))
    return [[f"{PLANNED:,}", f"{seconds:.1f}"]]


def measure_loop(folder: Path) -> list[list[str]]:
    """Measure the overhead of the loop: time other than forward, backward and optimizer step."""
    rows = []
    for config, steps in ((SMALL_BERT, 2000), (BERT, 500)):
        size = config["hidden_size"]
        spec = spec_of("classification", config, 32 * 640, folder / str(size), max_len=512)
        spec |= {"max_steps": steps, "outdir": str(folder / str(size) / "run")}
        step, bare, clipped = in_project(spec, "loop.py", *our_arguments(spec))
        name = f"{config['num_hidden_layers']} layers, width {size}"
        rows.append([name, f"{step:.0f}", f"{clipped:.1%}", f"{bare:.1%}"])
    return rows


def measure_processes(folder: Path, rounds: int) -> list[list[str]]:
    """Measure the speed of one process and of two, with one thread each."""
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
    """Start the processes of a run as a launcher does; return the measurements of each."""
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
    """Measure speed and memory with each flag and without it, alternately."""
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
                if variables:  # it may be very slow
                    with_flags["max_steps"] = 6
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


@dataclass(frozen=True)
class Part:
    """A measurement, shown in its own section.

    Attributes:
        measure: Returns the rows of the table; its argument is a new folder.
    """

    title: str
    about: str
    columns: list[str]
    measure: Callable[[Path, argparse.Namespace], list[list[str]]]


PARTS = {
    "data": Part(
        "By the number of examples",
        "At the first start the texts are read and tokenized; at the second start their tokens "
        "come from the cache. Pages of mapped files fill free memory; the system can reclaim them.",
        [
            "examples",
            "peak memory without mapped files at the first start, MiB",
            "at the second",
            "with mapped files at the first",
            "at the second",
            "first start to first step, s",
            "second",
            "first batch of an epoch, s",
            "first batch at 99 % of it, s",
        ],
        lambda folder, args: measure_data(args.examples, folder),
    ),
    "order": Part(
        "The order of an epoch",
        "Time to compute the order, by the number of examples.",
        ["examples", "seconds"],
        lambda folder, args: measure_order(folder),
    ),
    "loop": Part(
        "The loop itself",
        "Additional time of `train.py` compared with a bare loop: forward pass, backward pass and "
        "fused optimizer step over the same batches, made in advance, in the same process, "
        "alternately step by step. `train.py` clips gradients; the bare loop clips in one "
        "comparison only.",
        ["BERT", "bare loop, ms per step", "bare loop with clipping", "without clipping"],
        lambda folder, args: measure_loop(folder),
    ),
    "processes": Part(
        "Two processes, one thread each, compared with one",
        "Classification, batches of 32 over all processes. Padding counts as tokens.",
        ["one process, tokens/s", "two", "efficiency", "largest difference in tokens"],
        lambda folder, args: measure_processes(folder, args.rounds),
    ),
    "flags": Part(
        "With and without each flag",
        "As a multiple of the value without the flag, on a CPU. bfloat16 is many times slower on a "
        "CPU without instructions for it (AVX-512 BF16 or AMX).",
        ["task", "flag", "speed", "peak memory"],
        lambda folder, args: measure_flags(folder, args.rounds),
    ),
}


def markdown(results: dict[str, dict[str, Any]]) -> str:
    sections = [
        f"""## {part.title}

{part.about}
Measured on {results[name]["machine"]}.

{table(*part.columns, rows=results[name]["rows"])}"""
        for name, part in PARTS.items()
        if name in results
    ]
    about = "; ".join(f"{name} {version}" for name, version in environment().items())
    return f"""# Much data, two processes, and the flags

Made by `python bench/scale.py`. {about}.
A 2-layer BERT of width 128 for the data, otherwise the models of [speed.md](speed.md).

{chr(10).join(sections)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure with much data, processes, and flags.")
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=list(PARTS), action="append", help="only this one")
    parser.add_argument("--write", type=Path, help="write scale.md and .json here")
    args = parser.parse_args()
    kept = args.write / "scale.json" if args.write else Path()
    results = {}
    if args.part and kept.is_file():  # keep the results of parts measured earlier
        results = json.loads(kept.read_text(encoding="utf-8"))
    for name in args.part or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            rows = PARTS[name].measure(Path(folder) / name, args)
        results[name] = {"machine": environment()["machine"], "rows": rows}
        print(name, rows, file=sys.stderr)
    text = markdown(results)
    print(text)
    if args.write:
        (args.write / "scale.md").write_text(text, encoding="utf-8")
        kept.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
