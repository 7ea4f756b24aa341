"""Measure training steps: rates, padding, peak memory, and utilization of the device."""

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from .batches import Step
from .contract import ExampleSet
from .distributed import RankGroup
from .flops import training_flops
from .peak_rates import peak_rate

GIB = 2**30


@dataclass
class Counts:
    """Totals of the training steps in a period of time.

    Attributes:
        steps, examples, items, tokens: Numbers over all ranks; `items` are target items, or the
            sum of their weights, and `tokens` exclude padding.
        flops: Floating-point operations of the steps, over all ranks.
        positions: Tokens processed by this rank, including padding.
        start: Time at the start of the period.
    """

    steps: int = 0
    examples: int = 0
    items: float = 0
    tokens: int = 0
    flops: float = 0.0
    positions: int = 0
    start: float = field(default_factory=time.perf_counter)


class Throughput:
    """Measure training steps since the last call of `restart`, and since the last log entry.

    Checkpoints do not include the counts: after a resume they start from zero. The peak memory is
    measured since the last call of `restart` on CUDA, and since the start of the process otherwise.

    Args:
        tf32: Whether float32 matrix products use TF32.
    """

    def __init__(self, accelerator: Accelerator, model: torch.nn.Module, tf32: bool):
        bare = accelerator.unwrap_model(model)
        self._has_decoder = is_encoder_decoder(bare)
        self._device = accelerator.device
        self._num_ranks = accelerator.num_processes
        self._flops = training_flops(bare)
        self._peak: float | None = None
        if accelerator.device.type == "cuda":
            name = torch.cuda.get_device_name(accelerator.device)
            precision = "tf32" if tf32 else "float32"
            if accelerator.mixed_precision in ("bf16", "fp16"):
                precision = "half"
            self._peak = peak_rate(name, precision)
        self.restart()

    def restart(self) -> None:
        """Reset the counts of both periods; on CUDA, also reset the peak memory."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._since_restart = Counts()
        self._since_log = Counts()

    def add_batch(self, batch: dict[str, Any]) -> None:
        """Add the positions of a micro-batch of this rank."""
        positions = count_positions(batch, self._has_decoder)
        self._since_restart.positions += positions
        self._since_log.positions += positions

    def add_step(self, step: Step, examples: ExampleSet) -> None:
        """Add the counts of a step, over all ranks."""
        lengths = examples.lengths[step.examples]
        for counts in (self._since_restart, self._since_log):
            counts.steps += 1
            counts.examples += len(step.examples)
            counts.items += step.num_items
            if examples.has_lengths:
                counts.tokens += int(lengths.sum())
                counts.flops += self._flops.of(lengths) if self._flops else 0.0

    def since_restart(self, group: RankGroup) -> dict[str, float]:
        """Return the measurements since the last call of `restart`.

        Every rank has to call this method.
        """
        return self._measure(self._since_restart, group)

    def since_log(self, group: RankGroup) -> dict[str, float]:
        """Return the measurements since the last call of `since_log` or `restart`.

        Every rank has to call this method.
        """
        counts = self._since_log
        self._since_log = Counts()
        return self._measure(counts, group)

    def _measure(self, counts: Counts, group: RankGroup) -> dict[str, float]:
        """Combine the counts and the memory of all ranks with the time of the slowest rank."""
        seconds = time.perf_counter() - counts.start
        gathered = group.gather((seconds, counts.positions, peak_memory(self._device)))
        if counts.steps == 0:
            return {}
        seconds = max(part[0] for part in gathered)
        positions = sum(part[1] for part in gathered)
        measured = {
            "examples_per_second": round(counts.examples / seconds, 2),
            "target_items_per_second": round(counts.items / seconds, 2),
        }
        if counts.tokens:
            measured["tokens_per_second"] = round(counts.tokens / seconds, 2)
        if positions >= counts.tokens > 0:
            measured["padding"] = round(1 - counts.tokens / positions, 4)
        if self._peak and counts.flops:
            available = self._peak * self._num_ranks * seconds
            measured["mfu"] = round(counts.flops / available, 4)
        measured["peak_memory_gib"] = round(max(part[2] for part in gathered) / GIB, 3)
        return measured


def is_encoder_decoder(model: torch.nn.Module) -> bool:
    return getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def count_positions(batch: dict[str, Any], has_decoder: bool) -> int:
    """Count the tokens of `input_ids` in a batch, if any, including padding.

    Args:
        has_decoder: Whether the labels are a separate sequence, processed by a decoder. If so, the
            tokens of `labels` are also counted.
    """
    sequences = ("input_ids", "labels") if has_decoder else ("input_ids",)
    return sum(batch[key].numel() for key in sequences if key in batch)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: GPU memory on CUDA, else host memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # does not exist on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
