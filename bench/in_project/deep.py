"""Measure the time to load the first batch of an epoch, and the first batch after 99 % of it.

python deep.py TRAIN_INPUT BASE_MODEL      (run by scale.py, in the folder of a project)
"""

import sys
import time
from pathlib import Path
from statistics import median

from accelerate import Accelerator

sys.path.insert(0, str(Path.cwd()))

from training.batches import Batches  # noqa: E402
from training.contract import Task  # noqa: E402
from training.loading import load_tokenizer  # noqa: E402

BATCH_SIZE = 32
REPEATS = 5


def main() -> None:
    train_input, base = sys.argv[1:]
    examples = Task().read(train_input, load_tokenizer(base), max_len=128)
    batches = Batches(examples, Accelerator(), BATCH_SIZE, seed=0)
    for share in (0.0, 0.99):
        position = int(share * len(examples)) // BATCH_SIZE * BATCH_SIZE
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            next(next(batches.steps(0, position)).micro_batches)
            seconds.append(time.perf_counter() - start)
        print(median(seconds))


if __name__ == "__main__":
    main()
