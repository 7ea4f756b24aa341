"""Compare gradients, losses, scores and thresholds between different splits of a batch.

python splits.py FOLDER    FOLDER has single/ and several/, each with train.jsonl and valid.jsonl
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers.gradient_worker import measure
from helpers.processes import Launch

WHOLE = (8, 64)  # --batch_size and --eval_batch_size
OPTIONS = {
    "single": ["--class_weight", "balanced", "--label_smoothing", "0.1"],
    "several": [],
}


def compare(folder: Path, options: list[str]) -> None:
    tiny = folder / "tiny"
    shutil.copytree("tiny", tiny)
    config = json.loads((tiny / "config.json").read_text())
    config.update({name: 0.0 for name in config if "dropout" in name})
    (tiny / "config.json").write_text(json.dumps(config))
    for sizes in (WHOLE, (2, 3)):
        measure(folder, folder, *sizes, more=options)
    worker = [str(folder), str(folder), "2", "3", *options]
    Launch(worker, folder / "output", 2, module="helpers.gradient_worker").expect()
    names = ["1-8-64", "1-2-3", "2-2-3"]
    reports = [json.loads((folder / f"{name}.json").read_text()) for name in names]
    gradients = [load_file(folder / f"{name}.safetensors") for name in names]
    whole = torch.cat([tensor.flatten() for tensor in gradients[0].values()])
    assert whole.norm() > 0.1
    for other, report in zip(gradients[1:], reports[1:], strict=True):
        found = torch.cat([other[name].flatten() for name in gradients[0]])
        assert (found - whole).norm() < 1e-5 * whole.norm()
        assert abs(report["loss"] - reports[0]["loss"]) < 1e-5 * abs(reports[0]["loss"])
        assert report["chosen"] == reports[0]["chosen"]
        for name, value in report["valid"].items():
            assert abs(value - reports[0]["valid"][name]) < 1e-6, (name, reports)


if __name__ == "__main__":
    for name, options in OPTIONS.items():
        compare(Path(sys.argv[1], name), options)
