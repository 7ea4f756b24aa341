"""Compute one step's gradients and the validation loss, in however many processes run this.

`main` takes SAMPLE FOLDER BATCH_SIZE EVAL_BATCH_SIZE ... from the command line.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file

from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.metrics import Scores
from model.modeling import Model
from train import train_step, valid
from training.batches import Batches
from training.loading import load_tokenizer

GLOBAL_BATCH_SIZE = 8


def measure(sample: Path, folder: Path, batch_size: int, eval_batch_size: int) -> None:
    accelerator = Accelerator()
    tokenizer = load_tokenizer(str(sample / "tiny"))
    dataset = generate_dataset(sample / "train.jsonl", tokenizer, 48)
    torch.manual_seed(0)
    model = Model(ModelConfig(str(sample / "tiny"), **dataset.schema))
    scores = Scores(model, tokenizer, accelerator.device)
    model = accelerator.prepare(model)
    batches = Batches(dataset, accelerator, batch_size, GLOBAL_BATCH_SIZE, seed=1)
    loss, _ = train_step(accelerator, model, batches.epoch())
    report = {
        "loss": sum(gather_object([loss.item()])),
        "valid": valid(
            accelerator, model, Batches(dataset, accelerator, eval_batch_size), scores, 0
        ),
    }
    if accelerator.is_main_process:
        name = f"{accelerator.num_processes}-{batch_size}-{eval_batch_size}"
        parameters = accelerator.unwrap_model(model).named_parameters()
        gradients = {name: p.grad for name, p in parameters}
        save_file(gradients, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(report))


def main() -> None:
    sample, folder = map(Path, sys.argv[1:3])
    sizes = list(map(int, sys.argv[3:]))
    for batch_size, eval_batch_size in zip(sizes[::2], sizes[1::2], strict=True):
        measure(sample, folder, batch_size, eval_batch_size)
