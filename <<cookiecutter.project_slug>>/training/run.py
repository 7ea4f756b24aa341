"""The parts of a run that the training loop uses."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from model.interface import Scorer

from .averaging import WeightAverage
from .batches import Batches
from .checkpoint import Checkpointer
from .config import RunConfig
from .contract import Task
from .data import TrainData
from .distributed import RankGroup
from .losses import LossMeter
from .optimization import GradientGuard
from .signals import StopSignals
from .state import TrainState
from .strategy import Strategy
from .throughput import Throughput
from .validation import ValidationSet


@dataclass
class Run:
    """The parts of a run that the training loop uses.

    Attributes:
        commit: Commit of `--model_id` on the Hub; None for a folder.
        notes: Lines to print, for example about settings that train.py chose or changed.
    """

    task: Task
    config: RunConfig
    accelerator: Accelerator
    group: RankGroup
    strategy: Strategy
    model: torch.nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    guard: GradientGuard
    average: WeightAverage
    tokenizer: PreTrainedTokenizerBase | None
    train_data: TrainData
    valid_sets: list[ValidationSet]
    scores: Scorer
    state: TrainState
    losses: LossMeter
    throughput: Throughput
    signals: StopSignals
    checkpoints: Checkpointer
    commit: str | None
    notes: list[str]

    @property
    def train_batches(self) -> Batches:
        """Batches of the current epoch; every rank has to read this property."""
        return self.train_data.batches(
            self.state.current_epoch, self.config.batch_size, self.state.global_batch_size
        )
