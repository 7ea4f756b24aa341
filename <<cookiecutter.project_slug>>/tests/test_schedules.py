"""Each schedule has a finite learning rate at every step, or is refused before the first step."""

import math

import pytest
import torch

import train
from errors import RunError
from training.config import SCHEDULERS
from training.optimization import build_scheduler
from training.optimizers import build_optimizer

TOTALS = (1, 2, 5, 9, 10, 37)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedule_is_finite_at_every_step_or_refused(name):
    accepted = 0
    for total in TOTALS:
        for warmup in sorted({0, 1, total - 1, total, total + 3}):
            for lr in (2e-3, 1e-7, 1e-9, 0.0):
                optimizer = build_optimizer(torch.nn.Linear(2, 2), lr, 0.01)
                try:
                    scheduler = build_scheduler(optimizer, name, warmup, total)
                except RunError as error:
                    assert "\n" not in str(error)
                    continue
                accepted += 1
                for step in range(total):
                    rate = optimizer.param_groups[0]["lr"]
                    assert math.isfinite(rate), (total, warmup, lr, step)
                    assert 0 <= rate <= lr * 1.0001, (total, warmup, lr, step)
                    optimizer.step()
                    scheduler.step()
    assert accepted > 20  # the polynomial schedule refuses rates up to its final rate


@pytest.mark.proof
def test_schedule_that_cannot_be_computed_is_refused_before_the_first_step(arguments, tmp_path):
    lowest = ["--lr_scheduler_type", "polynomial", "--lr", "1e-9"]  # below its final value of 1e-7
    with pytest.raises(RunError, match="--lr_scheduler_type polynomial .*--lr 1e-09: no schedule"):
        train.main([*arguments, *lowest])
    assert not (tmp_path / "run").exists()
