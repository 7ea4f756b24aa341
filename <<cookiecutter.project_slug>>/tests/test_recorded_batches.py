"""Micro-batches equal those of an earlier version, whose runs can therefore be resumed."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from training.batches import Batches
from training.contract import ExampleSet

RECORDED = json.loads((Path(__file__).parent / "recorded_batches.json").read_text(encoding="utf-8"))


class Recorded(torch.utils.data.Dataset):
    lengths = np.array(RECORDED["lengths"])
    num_items = np.array(RECORDED["num_items"])

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return {"index": torch.tensor(index)}


@pytest.mark.parametrize("epoch", RECORDED["epochs"])
def test_micro_batches_equal_the_recorded_micro_batches(epoch):
    ranks = []
    for rank in range(epoch["processes"]):
        accelerator = SimpleNamespace(
            process_index=rank, num_processes=epoch["processes"], device=torch.device("cpu")
        )
        batches = Batches(ExampleSet(Recorded()), accelerator, 4, 12, seed=epoch["seed"])  # type: ignore[arg-type]
        steps = []
        for step in batches.steps(epoch["epoch"], epoch["start"]):
            micro_batches = list(step.micro_batches)
            steps.append([micro.indices if micro.weight else [] for micro in micro_batches])
            for number, micro in enumerate(micro_batches, 1):
                place = (epoch["epoch"], step.index, rank, number)
                assert micro.rng_key == (epoch["seed"] or 0, *place)
        ranks.append(steps)
    assert ranks == epoch["ranks"]
