"""Measure how long a save blocks the training loop, for a model of about 100 million parameters.

python bench/saving.py [--steps 60] [--markdown FILE]

In one run, two kinds of saves alternate: a thread writes one save while training continues; the
next save blocks training. The script takes about three minutes on two cores, and needs 3 GB of
disk space.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from common import ROOT, environment, render, table

SCRIPT = ROOT / "bench" / "in_project" / "saving.py"
# 7 million parameters per layer
SIZES = {"dim": 768, "hidden_dim": 3072, "n_layers": 14, "n_heads": 12}
SAVE_STEPS = 6


def measure(folder: Path, steps: int) -> dict[str, list[float]]:
    """Train, and return the seconds of each save and step, by kind."""
    project = render("classification", folder)
    base = folder / "base"
    shutil.copytree(project / "tiny", base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, **SIZES}), encoding="utf-8")
    command = [sys.executable, str(SCRIPT), "--model_id", str(base), "--max_len", "32"]
    command += ["--batch_size", "4", "--max_steps", str(steps), "--save_steps", str(SAVE_STEPS)]
    (project / "data" / "valid.jsonl").write_text(
        "".join((project / "data" / "valid.jsonl").open(encoding="utf-8").readlines()[:8]),
        encoding="utf-8",
    )
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=project, env=environment, check=True)
    return json.loads((project / "seconds.json").read_text(encoding="utf-8"))


def markdown(seconds: dict[str, list[float]]) -> str:
    middle = {name: median(values) for name, values in seconds.items() if values}
    held = middle["waiting"] / middle["background"]
    rows = [[name, len(seconds[name]), f"{value:.2f}"] for name, value in middle.items()]
    return f"""# Time for which a save blocks training

Written by `python bench/saving.py`. {"; ".join(f"{k} {v}" for k, v in environment().items())}.

The model is a DistilBERT with about 100 million parameters, trained with AdamW on the CPU. A save
of `last/` has 0.4 GB of weights and 0.8 GB of optimizer state; a save of `best/` adds 0.4 GB. In
one run, two kinds of saves alternate. "background": `Checkpointer.save` copies the tensors and
returns; a thread writes them. "waiting": `Checkpointer.save` returns when the checkpoint is
written, and blocks the loop {held:.1f} times as long. The table has the medians of these times,
and of the times of training steps:

{table("", "count", "seconds", rows=rows)}
On a CPU, the thread uses the same cores as training, so steps take longer while it writes.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure how long a save blocks the training loop."
    )
    parser.add_argument("--steps", type=int, default=60, help="training steps")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = markdown(measure(Path(folder), args.steps))
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
