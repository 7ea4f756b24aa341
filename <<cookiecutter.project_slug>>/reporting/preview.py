"""A look at a run before it begins: what `--dry_run` prints, in one screen."""

import resource
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from errors import RunError
from training.batches import Batches
from training.state import TrainingState

EXAMPLES, WIDTH = 3, 160  # shown, and characters of each
FLOAT = 4  # bytes: weights are in float32
SAMPLED = 100  # forward passes that padding is counted in


def preview(
    accelerator: Accelerator,
    state: TrainingState,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    scheduler: LambdaLR,
    batches: Batches,
    valid_batches: Batches,
    train_step: Callable,
) -> None:
    """Go as far as the first optimizer step, and print what there is to see.

    Args:
        train_step: Called as `train_step(accelerator, model, micro_batches)`.

    Raises:
        RunError: the run would not fit into the memory, or its checkpoints not on the disk.
    """
    config = accelerator.unwrap_model(model).config
    lines = [
        *_about_data("train", batches.dataset, state.args["max_len"]),
        *_about_data("valid", valid_batches.dataset, state.args["max_len"]),
        *_label_counts(batches.dataset, config),
        *_examples(batches.dataset, config, tokenizer),
        *_about_steps(state, batches, scheduler),
    ]
    memory = _memory_of_a_step(accelerator, state, model, batches, train_step)
    lines += [*_about_model(model, memory), _about_disk(state, model)]
    accelerator.on_main_process(print)("\n".join(lines))


def _about_data(name: str, dataset, max_len: int) -> Iterator[str]:
    lengths = dataset.lengths
    spread = ", ".join(f"{p} % {v:,.0f}" for p, v in _percentiles(lengths, (5, 50, 95)))
    parts = [lengths - dataset.num_items, dataset.num_items] if _has_targets(dataset) else [lengths]
    full = int(np.any([part >= max_len for part in parts], axis=0).sum())
    yield (
        f"{name}: {len(dataset):,} examples, {int(lengths.sum()):,} tokens; "
        f"{int(dataset.num_items.sum()):,} label items"
    )
    yield (
        f"  tokens: {lengths.min():,} to {lengths.max():,} ({spread}); "
        f"{full:,} fill --max_len {max_len}: cut off, or just as long"
    )


def _has_targets(dataset) -> bool:
    """Whether labels are texts of their own: the lengths then count them, too."""
    return bool(dataset.lengths[0] > len(dataset[0]["input_ids"]))


def _percentiles(values: np.ndarray, percents: tuple[int, ...]) -> list[tuple[int, float]]:
    return list(zip(percents, np.percentile(values, percents), strict=True))


def _label_counts(dataset, config: PreTrainedConfig) -> Iterator[str]:
    """Of labels that are names."""
    if dataset[0]["labels"].ndim == 0 and not dataset[0]["labels"].is_floating_point():
        counts = np.bincount(dataset.rows.data.column("labels").to_numpy())
        named = (f"{config.id2label[label]} {n:,}" for label, n in enumerate(counts))
        yield "labels: " + ", ".join(named)


def _examples(dataset, config: PreTrainedConfig, tokenizer) -> Iterator[str]:
    for index in np.linspace(0, len(dataset) - 1, min(EXAMPLES, len(dataset))).astype(int):
        example = dataset[index]
        labels = example["labels"]
        if labels.is_floating_point():
            target = str(labels.tolist())
        elif "labels" in dataset.schema:
            target = " ".join(config.id2label[label] for label in labels[labels != -100].tolist())
        else:
            target = tokenizer.decode(labels[labels != -100])
        yield f"example {index}"
        yield f"  input:  {tokenizer.decode(example['input_ids'])[:WIDTH]!r}"
        yield f"  target: {target[:WIDTH]!r}"


def _about_steps(state: TrainingState, batches: Batches, scheduler: LambdaLR) -> Iterator[str]:
    warm, end = state.args["num_warmup_steps"], state.total_steps - 1
    base, factor = scheduler.base_lrs[0], scheduler.lr_lambdas[0]
    points = {"start": 0, f"after {warm} steps": warm, "middle": end // 2, "end": end}
    rates = ", ".join(f"{name} {base * factor(step):.3g}" for name, step in points.items())
    yield (
        f"steps: {state.total_steps:,}, {len(batches):,} in an epoch, "
        f"{state.global_batch_size} examples in each; {_padding(batches):.1%} padding"
    )
    yield f"  learning rate: {rates}"


def _padding(batches: Batches) -> float:
    """The share of padding among the tokens that are computed."""
    dataset, real, computed = batches.dataset, 0, 0
    has_targets = _has_targets(dataset)
    for inputs, micro in islice(batches.epoch(), SAMPLED):
        real += int(dataset.lengths[micro.indices].sum())
        computed += inputs["input_ids"].numel() + has_targets * inputs["labels"].numel()
    return 1 - real / computed


def _memory_of_a_step(
    accelerator: Accelerator,
    state: TrainingState,
    model: torch.nn.Module,
    batches: Batches,
    train_step: Callable,
) -> int:
    """Compute the gradient of the longest examples; give the most memory that was in use, bytes."""
    size, total = state.args["batch_size"], state.global_batch_size
    longest = Batches(batches.dataset, accelerator, size, total)
    model.train()
    try:
        train_step(accelerator, model, longest.epoch())
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"--batch_size {size}: too much for the longest examples ({reason})"
        ) from None
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _about_model(model: torch.nn.Module, memory: int) -> Iterator[str]:
    parameters = list(model.parameters())
    trained = _count(p for p in parameters if p.requires_grad)
    dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
    yield (f"model: {_count(parameters):,} parameters ({dtypes}), {trained:,} of them trained")
    yield (
        f"  memory: {_size(memory)} at most up to here, with a step of the longest examples; "
        f"AdamW will take {_size(2 * FLOAT * trained)} more"
    )


def _about_disk(state: TrainingState, model: torch.nn.Module) -> str:
    folder = Path(state.args["outdir"]).resolve()
    while not folder.exists():
        folder = folder.parent
    weights = FLOAT * _count(model.parameters())
    trained = FLOAT * _count(p for p in model.parameters() if p.requires_grad)
    last, free = weights + 2 * trained, shutil.disk_usage(folder).free
    # best/, last/ and the last/ before it stay; a new pair is written beside them.
    if free < (needed := 3 * last + 2 * weights):
        raise RunError(f"{folder}: {_size(free)} are free; checkpoints take {_size(needed)}")
    return f"disk: best/ {_size(weights)}, last/ {_size(last)}; {_size(free)} free in {folder}"


def _count(parameters: Iterable[torch.nn.Parameter]) -> int:
    """Their numbers, of all processes: under ZeRO-3 each holds a part, aside."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in parameters)


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
