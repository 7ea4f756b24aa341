"""`--dry_run`: print data, schedule, memory and disk space before the first optimizer step."""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from errors import RunError
from training.batches import Batches, Step
from training.contract import ExampleSet
from training.run import Run
from training.user_code import user_code

FLOAT = 4  # bytes: weights and optimizer state are in float32
SAMPLED = 100  # steps in which padding tokens are counted


def preview(run: Run, train_step: Callable[[Run, Step], Any]) -> None:
    """Run everything up to the first optimizer step, and print what was found.

    Raises:
        RunError: A step does not fit into memory, or the checkpoints do not fit on the disk.
    """
    batches = run.train_batches
    memory = _memory_of_a_step(run, train_step)
    # The main rank removes the output directory again; the other ranks wait for this.
    run.group.on_main(lambda: print(*_lines(run, batches, memory), sep="\n"))


def _lines(run: Run, batches: Batches, memory: int) -> Iterator[str]:
    max_len = run.config.max_len
    yield from _about_data("train", batches.examples, max_len)
    with user_code("model/dataset.py: describe fails"):
        yield from batches.examples.describe()
    yield from _about_data("valid", run.valid_batches.examples, max_len)
    yield from _about_steps(run, batches)
    yield from _about_model(run.model, memory)
    yield _about_disk(run)


def _about_data(name: str, examples: ExampleSet, max_len: int) -> Iterator[str]:
    items = f"{int(examples.num_items.sum()):,} target items"
    if not examples.has_lengths:
        yield f"{name}: {len(examples):,} examples; {items}"
        return
    lengths = examples.lengths
    percents = (5, 50, 95)
    values = np.percentile(lengths, percents)
    spread = ", ".join(f"{p} % {v:,.0f}" for p, v in zip(percents, values, strict=True))
    full = int((lengths >= max_len).sum())
    yield f"{name}: {len(examples):,} examples, {int(lengths.sum()):,} tokens; {items}"
    yield (
        f"  tokens: {lengths.min():,} to {lengths.max():,} ({spread}); "
        f"{full:,} reach --max_len {max_len} (possibly truncated)"
    )


def _about_steps(run: Run, batches: Batches) -> Iterator[str]:
    state = run.state
    padding = _padding(run, batches) if batches.examples.has_lengths else None
    share = "" if padding is None else f"; {padding:.1%} padding"
    yield (
        f"steps: {state.total_steps:,}, {len(batches):,} per epoch, "
        f"global batch size {state.global_batch_size}{share}"
    )
    warm = run.config.num_warmup_steps
    end = state.total_steps - 1
    factors = getattr(run.scheduler, "lr_lambdas", None)
    if factors is not None:
        base = run.scheduler.base_lrs[0]
        points = {"start": 0, f"after {warm} steps": warm, "middle": end // 2, "end": end}
        rates = ", ".join(f"{name} {base * factors[0](n):.3g}" for name, n in points.items())
        yield f"  learning rate: {rates}"


def _padding(run: Run, batches: Batches) -> float | None:
    """Return the fraction of tokens that are padding; None for batches without `input_ids`."""
    config = getattr(run.accelerator.unwrap_model(run.model), "config", None)
    has_decoder = getattr(config, "is_encoder_decoder", False)
    sequences = ("input_ids", "labels") if has_decoder else ("input_ids",)
    real = 0
    computed = 0
    for step in islice(batches.steps(), SAMPLED):
        for micro in step.micro_batches:
            real += int(batches.examples.lengths[micro.indices].sum())
            computed += sum(micro.batch[key].numel() for key in sequences if key in micro.batch)
    return 1 - real / computed if computed >= real > 0 else None


def _memory_of_a_step(run: Run, train_step: Callable[[Run, Step], Any]) -> int:
    """Compute the gradient of the longest examples; return the peak memory in bytes."""
    size = run.config.batch_size
    examples = run.train_batches.examples
    longest = Batches(examples, run.accelerator, size, run.state.global_batch_size)
    run.model.train()
    try:
        train_step(run, next(longest.steps()))
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"--batch_size {size}: too large for the longest examples ({reason})"
        ) from None
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _peak_memory()


def _peak_memory() -> int:
    """Return the peak memory of this process on the CPU, in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _about_model(model: torch.nn.Module, memory: int) -> Iterator[str]:
    parameters = list(model.parameters())
    trained = _count(p for p in parameters if p.requires_grad)
    dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
    yield f"model: {_count(parameters):,} parameters ({dtypes}), {trained:,} trained"
    yield (
        f"  memory: peak {_size(memory)} so far, with a step of the longest examples; "
        f"AdamW will add {_size(2 * FLOAT * trained)}"
    )


def _about_disk(run: Run) -> str:
    folder = Path(run.config.outdir).resolve()
    weights = FLOAT * _count(run.model.parameters())
    trained = FLOAT * _count(p for p in run.model.parameters() if p.requires_grad)
    last = weights + 2 * trained
    free = shutil.disk_usage(folder).free
    # best/, last/ and the previous last/ are kept; a new pair is written beside them.
    if free < (needed := 3 * last + 2 * weights):
        raise RunError(f"{folder}: {_size(free)} are free; checkpoints take {_size(needed)}")
    return f"disk: best/ {_size(weights)}, last/ {_size(last)}; {_size(free)} free in {folder}"


def _count(parameters: Iterable[torch.nn.Parameter]) -> int:
    """Count all values; under ZeRO-3, `numel` of a sharded parameter is 0."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in parameters)


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
