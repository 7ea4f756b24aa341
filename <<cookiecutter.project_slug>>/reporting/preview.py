"""`--dry_run`: print data, schedule, memory and disk space, without an optimizer step."""

import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from errors import RunError
from training.batches import Batches, Step
from training.contract import ExampleSet
from training.flops import full_size
from training.optimizer_options import OPTIMIZERS
from training.run import Run
from training.throughput import count_positions, is_encoder_decoder, peak_memory
from training.user_code import user_code

FLOAT = 4  # bytes per element of the saved weights; the maximum for optimizer state
SAMPLED = 100  # maximum number of steps in which padding tokens are counted


def preview(run: Run, train_step: Callable[[Run, Step], Any]) -> None:
    """Compute the gradient of one step, without an optimizer step; print the lines of `--dry_run`.

    Raises:
        RunError: The step fails or does not fit into memory, the checkpoints do not fit on the
            disk, or `describe` or `faults` of the data set fails.
    """
    batches = run.train_batches
    memory = _memory_of_a_step(run, train_step)
    # The main rank prints. The other ranks wait, and also end if the main rank raises an error.
    run.group.on_main(lambda: print(*_lines(run, batches, memory), sep="\n"))


def _lines(run: Run, batches: Batches, memory: int) -> Iterator[str]:
    yield from _about_data("train", batches.examples)
    with user_code("model/dataset.py: describe fails"):
        yield from batches.examples.describe()
    yield from _about_faults(batches.examples)
    for part in run.valid_sets:
        yield from _about_data(f"valid {part.name}".strip(), part.batches.examples)
        yield from _about_faults(part.batches.examples, batches.examples)
    yield from _about_steps(run, batches)
    yield from _about_model(run, memory)
    yield _about_disk(run)


def _about_data(name: str, examples: ExampleSet) -> Iterator[str]:
    items = f"{examples.num_items.sum():,.0f} target items"
    if not examples.has_lengths:
        yield f"{name}: {len(examples):,} examples; {items}"
        return
    lengths = examples.lengths
    percents = (5, 50, 95)
    values = np.percentile(lengths, percents)
    spread = ", ".join(f"{p} % {v:,.0f}" for p, v in zip(percents, values, strict=True))
    yield f"{name}: {len(examples):,} examples, {int(lengths.sum()):,} tokens; {items}"
    yield f"  tokens: {lengths.min():,} to {lengths.max():,} ({spread})"


def _about_faults(examples: ExampleSet, train: ExampleSet | None = None) -> Iterator[str]:
    with user_code("model/dataset.py: faults fails"):
        found = list(examples.faults(train))
    yield "rows that may be wrong:" if found else "rows that may be wrong: none found"
    yield from found


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
    """Return padding as a fraction of all tokens; None for batches without `input_ids`."""
    has_decoder = is_encoder_decoder(run.accelerator.unwrap_model(run.model))
    real = 0
    computed = 0
    for step in islice(batches.steps(), SAMPLED):
        for micro in step.micro_batches:
            real += int(batches.examples.lengths[micro.indices].sum())
            computed += count_positions(micro.batch, has_decoder)
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
    return peak_memory(run.accelerator.device)


def _about_model(run: Run, memory: int) -> Iterator[str]:
    parameters = list(run.model.parameters())
    trained = sum(full_size(p) for p in parameters if p.requires_grad)
    dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
    yield f"model: {sum(map(full_size, parameters)):,} parameters ({dtypes}), {trained:,} trained"
    yield f"  memory: peak {_size(memory)} so far, including the gradient of the longest examples"
    if run.task.build_optimizer is None:
        yield f"  the first optimizer step adds a state of up to {_size(_state_size(run, trained))}"


def _state_size(run: Run, trained: int) -> int:
    """Return the maximum size in bytes of the state of `--optimizer` and the average of `--ema`."""
    tensors = OPTIMIZERS[run.config.optimizer].state_tensors + (run.config.ema > 0)
    return FLOAT * trained * tensors


def _about_disk(run: Run) -> str:
    folder = Path(run.config.outdir).resolve()
    trained = sum(full_size(p) for p in run.model.parameters() if p.requires_grad)
    whole = sum(map(full_size, run.model.parameters()))
    # With LoRA, only the adapter is saved.
    weights = FLOAT * (trained if run.config.lora_rank else whole)
    last = weights + _state_size(run, trained)
    free = shutil.disk_usage(folder).free
    # best/, last/ and the previous last/ stay on the disk while a new best/ and last/ are written.
    if free < (needed := 3 * last + 2 * weights):
        raise RunError(f"{folder}: {_size(free)} are free; the checkpoints need {_size(needed)}")
    return f"disk: best/ {_size(weights)}, last/ {_size(last)}; {_size(free)} free in {folder}"


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
