"""Check that two workers of Ray Train have the same loss as two processes of `accelerate launch`.

Run this script in the folder of a project.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

PROJECT = str(Path.cwd())
SHORT = ["--max_steps", "4", "--valid_steps", "4", "--batch_size", "4"]


def loop() -> None:
    os.chdir(PROJECT)
    sys.path.insert(0, PROJECT)
    import train

    train.main([*SHORT, "--outdir", "by_ray"])


def loss_of(outdir: str) -> float:
    log = json.loads((Path(outdir) / "log.json").read_text(encoding="utf-8"))
    return log["Epoch 0"]["valid_log"]["loss"]


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False)
    result = TorchTrainer(
        loop,
        scaling_config=ScalingConfig(num_workers=2),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(storage_path=f"{PROJECT}/ray"),
    ).fit()
    ray.shutdown()
    assert result.error is None
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [sys.executable, *launch, "train.py", *SHORT, "--outdir", "by_accelerate"]
    subprocess.run(command, check=True)
    assert loss_of("by_ray") == loss_of("by_accelerate")
