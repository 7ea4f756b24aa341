"""Time the computation of the order of an epoch.

python order.py EXAMPLES      (run by scale.py, in the folder of a project)
"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path.cwd()))

from training.batches import epoch_order  # noqa: E402


def main() -> None:
    draw = np.random.default_rng(0)
    lengths = draw.lognormal(3.6, 0.8, int(sys.argv[1])).astype(np.int64)
    start = time.perf_counter()
    epoch_order(lengths, 256, 0, 0)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
