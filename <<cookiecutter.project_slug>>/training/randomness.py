"""Randomness as a function of where the run stands, so that no random state is ever saved."""

import random

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch, on every device, with numbers drawn from the whole key.

    Python's own comes first: it hashes a text, so that neighbouring keys give unrelated streams.
    """
    random.seed(" ".join(map(str, key)))
    np.random.seed(random.getrandbits(32))
    # For devices that are absent, torch.manual_seed writes down a stack trace each time: slow.
    has_accelerator = torch.accelerator.is_available()
    seed_torch = torch.manual_seed if has_accelerator else torch.default_generator.manual_seed
    seed_torch(random.getrandbits(64))
