"""Measure speed and memory with large data, late in an epoch, in two processes, and with flags.

python bench/scale.py [--examples 1000000] [--write FOLDER]

The script renders projects and measures them in separate processes. It needs no network and no GPU.
"""

import argparse
import json
import os
import shutil
import socket
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
PLANNED = 10_000_000  # examples in the epoch for which the computation of the order is timed
IN_PROJECT = Path(__file__).parent / "in_project"


def spec_of(task: str, config: dict, count: int, folder: Path, **options: Any) -> dict[str, Any]:
    """Create data, a base model and a project in a new folder; return the settings of a run."""
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
    """Run a script of in_project/ in the folder of a project; return the numbers that it prints."""
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
    """Measure memory and time for different numbers of examples."""
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
    """Measure the overhead of the training loop, compared with bare loops."""
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
    """Start the processes of a run as a launcher does; return the measurements of each process."""
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    script = Path(__file__).with_name("one_run.py")
    variables = {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
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
    """Measure speed and memory without flags and with each flag, alternately."""
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
                if variables:  # bfloat16 may be very slow
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
    """A measurement, which has its own section in scale.md.

    Attributes:
        measure: Returns the rows of the table; its first argument is a new folder.
    """

    title: str
    about: str
    columns: list[str]
    measure: Callable[[Path, argparse.Namespace], list[list[str]]]


PARTS = {
    "data": Part(
        "Numbers of examples",
        "At the first start, the texts are read and tokenized; at the second start, their tokens "
        "come from the cache. The system can reclaim the memory of memory-mapped files.",
        [
            "examples",
            "peak memory without mapped files, first start, MiB",
            "peak memory without mapped files, second start, MiB",
            "peak memory with mapped files, first start, MiB",
            "peak memory with mapped files, second start, MiB",
            "first start to first step, s",
            "second start to first step, s",
            "first batch of an epoch, s",
            "first batch at 99 % of an epoch, s",
        ],
        lambda folder, args: measure_data(args.examples, folder),
    ),
    "order": Part(
        "The order of an epoch",
        "Time to compute the order of the examples.",
        ["examples", "seconds"],
        lambda folder, args: measure_order(folder),
    ),
    "loop": Part(
        "The training loop",
        "Additional time of a step of `train.py`, relative to bare loops: forward pass, backward "
        "pass and fused optimizer step on the same batches, which are prepared in advance. All "
        "loops run in the same process, alternately step by step. `train.py` clips gradients. One "
        "bare loop clips gradients; the other does not.",
        [
            "BERT",
            "bare loop without clipping, ms per step",
            "additional time, relative to the loop with clipping",
            "relative to the loop without clipping",
        ],
        lambda folder, args: measure_loop(folder),
    ),
    "processes": Part(
        "One process and two processes, with one thread each",
        "Classification with a global batch size of 32. The speeds do not include padding tokens. "
        "The last column has the largest relative difference between the numbers of tokens of the "
        "two processes, including padding.",
        ["one process, tokens/s", "two processes, tokens/s", "efficiency", "largest difference"],
        lambda folder, args: measure_processes(folder, args.rounds),
    ),
    "flags": Part(
        "Flags",
        "Values relative to those without flags, on a CPU. bfloat16 is many times slower on a "
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
    return f"""# Large data, two processes, and flags

Written by `python bench/scale.py`. {about}. "Numbers of examples" uses a 2-layer BERT of width
128; the other sections use the models of [speed.md](speed.md), unless they name another model.

{chr(10).join(sections)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=1_000_000, help="rows in the large data")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each variant")
    parser.add_argument(
        "--part", choices=list(PARTS), action="append", help="measure only this part"
    )
    parser.add_argument("--write", type=Path, help="folder for scale.md and scale.json")
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
