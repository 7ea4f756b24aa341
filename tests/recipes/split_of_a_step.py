"""Print the relative differences of the updates in one step, for several splits of its batch.

Run this script in the folder of a project with the recipe "contrastive". The script replaces
model/optimization.py by gradient descent, so that the updates of the weights are proportional to
the gradients.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "tests")]

import torch  # noqa: E402

from helpers.assertions import read_weights  # noqa: E402
from helpers.processes import Launch  # noqa: E402

DESCENT = """
import torch

def build_optimizer(model, lr, weight_decay):
    return torch.optim.SGD(model.parameters(), lr=lr)
"""
# Number of processes, --batch_size, --accumulation, --chunk_size. The global batch size is 12.
SPLITS = [(1, 12, 1, 12), (1, 12, 1, 5), (2, 6, 1, 12), (2, 6, 1, 4), (1, 6, 2, 12)]


def weights(lr: float, processes: int, *sizes: int) -> torch.Tensor:
    names = ("--batch_size", "--accumulation", "--chunk_size")
    outdir = Path(f"runs/{lr}-{processes}-{'-'.join(map(str, sizes))}").resolve()
    arguments = [word for pair in zip(names, map(str, sizes), strict=True) for word in pair]
    arguments += [
        "--lr",
        str(lr),
        "--max_steps",
        "1",
        "--max_grad_norm",
        "0",
        "--outdir",
        str(outdir),
    ]
    Launch(arguments, outdir.with_suffix(".output"), processes).expect()
    tensors = read_weights(outdir / "last")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def main() -> None:
    Path("model/optimization.py").write_text(DESCENT, encoding="utf-8")
    config = json.loads(Path("tiny/config.json").read_text(encoding="utf-8"))
    config.update({name: 0.0 for name in config if "drop" in name})
    Path("tiny/config.json").write_text(json.dumps(config), encoding="utf-8")
    before = weights(0.0, *SPLITS[0])
    updates = [weights(1.0, *split) - before for split in SPLITS]
    for update in updates[1:]:
        print(f"{(update - updates[0]).norm() / updates[0].norm():.3g}")


if __name__ == "__main__":
    main()
