"""Randomness as a function of where the run stands, so that no random state is ever saved."""

import random

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch, on every device, with a number drawn from the whole key.

    `numpy.random.SeedSequence` mixes the key, so that neighbouring keys give unrelated streams.
    """
    state = np.random.SeedSequence(key).generate_state(2)
    random.seed(int(state[0]))
    np.random.seed(state[0])
    # For devices that are absent, torch.manual_seed writes down a stack trace each time: slow.
    has_accelerator = torch.accelerator.is_available()
    seed_torch = torch.manual_seed if has_accelerator else torch.default_generator.manual_seed
    seed_torch(int(state[0]) * 2**32 + int(state[1]))
