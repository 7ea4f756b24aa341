"""Compare the time to the first step with that of a plain script; measure the time of --help.

python bench/start.py [--rounds 5] [--write FOLDER]

The plain script imports torch and transformers, loads the same tokenizer, builds a model from the
same configuration, and trains one step on the first rows. train.py and the plain script are started
alternately, each time in a new process. The first round is not counted, because it fills the caches
of files and tokens.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import TASKS, environment, render, table

TIMES = (
    "print('TIMES', json.dumps([time.process_time(), time.time() - float(os.environ['BEGAN'])]))"
)
# Only the time to the first step is measured, so the process ends after this step.
OURS = f"""
import json, os, sys, time
from training.command_line import check_early
check_early(lambda arguments: None)  # as when train.py is started as a script
import train
step = train.optimizer_step
def stop(*arguments):
    step(*arguments)
    {TIMES}
    sys.stdout.flush()
    os._exit(0)
train.optimizer_step = stop
train.exit_code_of(lambda: train.main(["--outdir", sys.argv[1], "--max_steps", "1"]))
"""
PLAIN = f"""
import json, os, sys, time
import torch
from transformers import AutoConfig, AutoTokenizer, {{auto}}
tokenizer = AutoTokenizer.from_pretrained("tiny")
model = {{auto}}.from_config(AutoConfig.from_pretrained("tiny"))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
with open("data/train.jsonl", encoding="utf-8") as file:
    rows = [json.loads(line) for line in file][:16]
options = {{{{"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}}}}
batch = tokenizer([str(next(iter(row.values()))) for row in rows], **options)
labels = {{labels}}
inputs = {{{{"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}}}}
model(**inputs, labels=labels).loss.backward()
optimizer.step()
{TIMES}
"""
AUTO = {
    "classification": ("AutoModelForSequenceClassification", "torch.zeros(16, dtype=torch.long)"),
    "seq2seq": ("AutoModelForSeq2SeqLM", 'batch["input_ids"]'),
    "token_classification": (
        "AutoModelForTokenClassification",
        'torch.zeros_like(batch["input_ids"])',
    ),
}
CAUSAL = ("AutoModelForCausalLM", 'batch["input_ids"]')
SCRIPTS = ("train.py", "predict.py", "export.py", "sweep.py")


def times(command: list[str], project: Path, folder: Path) -> list[float]:
    """Run a script; return the CPU and the wall time until the end of its step, in seconds."""
    shell = ["import os, sys, time; os.environ['BEGAN'] = str(time.time())"]
    shell += ["os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"]
    variables = {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(shell), *command],
        cwd=project,
        env={**os.environ, **variables, "HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("TIMES")]
    return json.loads(line.removeprefix("TIMES"))


def help_seconds(project: Path, script: str) -> float:
    """Return the CPU seconds of `python SCRIPT --help`."""
    before = os.times()
    subprocess.run([sys.executable, script, "--help"], cwd=project, capture_output=True, check=True)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def measure(task: str, rounds: int, folder: Path) -> dict[str, Any]:
    project = render(task, folder)
    auto, labels = AUTO.get(task, CAUSAL)
    plain = ["-c", PLAIN.format(auto=auto, labels=labels)]
    found: dict[str, list] = {"ours": [], "plain": [], **{script: [] for script in SCRIPTS}}
    for number in range(rounds + 1):
        ours = ["-c", OURS, str(folder / f"{task}-{number}")]
        result = {"ours": times(ours, project, folder), "plain": times(plain, project, folder)}
        result |= {script: help_seconds(project, script) for script in SCRIPTS}
        for name, value in result.items() if number else ():
            found[name].append(value)
    return {
        name: [statistics.median(column) for column in zip(*values, strict=True)]
        if isinstance(values[0], list)
        else statistics.median(values)
        for name, values in found.items()
    }


def markdown(results: dict[str, Any], rounds: int, about: dict[str, str]) -> str:
    rows = []
    for task, found in results.items():
        (cpu, wall), (plain_cpu, plain_wall) = found["ours"], found["plain"]
        row = [task, f"{cpu:.2f}", f"{plain_cpu:.2f}", f"{cpu / plain_cpu:.2f}"]
        row += [f"{wall:.2f}", f"{plain_wall:.2f}"]
        rows.append([*row, *(f"{found[script]:.2f}" for script in SCRIPTS)])
    head = ["task", "train.py, CPU s", "plain script, CPU s", "ratio", "train.py, s"]
    head += ["plain script, s", *(f"{script} --help, CPU s" for script in SCRIPTS)]
    return f"""# Time to the first step

Written by `python bench/start.py`. {"; ".join(f"{k} {v}" for k, v in about.items())}. Medians of
{rounds} rounds, one thread, base model `tiny`. The times of train.py and of the plain script end
after the first optimizer step.

{table(*head, rows=rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each script")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="tasks")
    parser.add_argument("--write", help="folder for start.md")
    args = parser.parse_args()
    if args.write and not Path(args.write).is_dir():
        parser.error(f"--write {args.write}: no such folder")
    with tempfile.TemporaryDirectory() as name:
        results = {task: measure(task, args.rounds, Path(name)) for task in args.tasks}
    text = markdown(results, args.rounds, environment())
    print(text)
    if args.write:
        Path(args.write, "start.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
