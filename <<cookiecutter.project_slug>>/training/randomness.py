"""Seeds that depend on the position in a run, so that no RNG state has to be saved."""

import random

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch, on every device, from a tuple of numbers.

    `random.seed` hashes the text of the key, so that similar keys give unrelated random numbers.
    """
    random.seed(" ".join(map(str, key)))
    np.random.seed(random.getrandbits(32))
    # Without an accelerator, torch.manual_seed records a stack trace at each call, which is slow.
    has_accelerator = torch.accelerator.is_available()
    seed_torch = torch.manual_seed if has_accelerator else torch.default_generator.manual_seed
    seed_torch(random.getrandbits(64))
