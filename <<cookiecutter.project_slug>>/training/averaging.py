"""The average of the weights over the steps, which is validated and saved as best/.

Training continues from the raw weights, which are saved as last/ together with the average.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from errors import RunError

from .optimization import innermost
from .strategy import reshard

EMA = "ema"  # entry in the optimizer's state of a parameter: saved, sharded and loaded with it


class WeightAverage:
    """An exponential moving average, or the average of an optimizer with `train` and `eval`.

    The average starts with the weights after the first step. After update t, it is
    `d * average + (1 - d) * weights` with `d = min(decay, (1 + t) / (10 + t))`, as in TensorFlow's
    `ExponentialMovingAverage`: the decay is smaller at first, so that the average of a short run
    forgets the initial weights. Only trained parameters are averaged, no buffers.

    Schedule-free optimizers compute an average themselves. `optimizer.eval()` replaces the weights
    by it, and `optimizer.train()` replaces them back.

    Args:
        optimizer: Without state: this object switches it to training.
        decay: Of the exponential moving average; 0: none.
        updates: Number of updates before a resume.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, decay: float, updates: int):
        self.model = model
        self.optimizer = innermost(optimizer)
        self.decay = decay
        self.updates = updates
        self.is_of_optimizer = hasattr(self.optimizer, "eval")
        self._raw: dict[nn.Parameter, Tensor] = {}
        if self.is_of_optimizer:
            self.optimizer.train()  # type: ignore[attr-defined]

    def check_save(self, save_pretrained: Callable) -> None:
        """Check that other weights than those in the model can be saved.

        Raises:
            RunError: `save_pretrained` has no such parameter.
        """
        if self.exists and "state_dict" not in inspect.signature(save_pretrained).parameters:
            raise RunError(
                "model/modeling.py: save_pretrained has no parameter state_dict; expected one, to "
                "save the average of the weights as best/"
            )

    @property
    def exists(self) -> bool:
        """Whether the weights to validate differ from the raw ones."""
        return self.decay > 0 or self.is_of_optimizer

    @torch.no_grad()
    def update(self) -> None:
        """Update the moving average; call this after a step, before the gradients are removed."""
        if not self.decay:
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = []
        weights = []
        for parameter in self._parameters():
            state = self.optimizer.state.get(parameter, {})
            if EMA not in state:
                # torch initializes the state of a parameter at its first gradient if it is empty.
                if parameter.grad is None:
                    continue
                state = self.optimizer.state[parameter]
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                state[EMA] = parameter.detach().to(dtype, copy=True)
            averages.append(state[EMA])
            weights.append(parameter.detach().to(state[EMA].dtype))
        if averages:
            get_ema_multi_avg_fn(decay)(averages, weights, None)

    @contextmanager
    def applied(self, enabled: bool = True) -> Iterator[None]:
        """Use the average as the weights of the model, or the raw weights; then switch back.

        The raw weights are kept in a copy, since `train()` after `eval()` would round them.
        """
        was_enabled = bool(self._raw)
        self._switch(enabled)
        try:
            yield
        finally:
            self._switch(was_enabled)

    @torch.no_grad()
    def _switch(self, enabled: bool) -> None:
        if not self.exists or enabled == bool(self._raw):
            return
        reshard(self.model)  # FSDP2 would use the outermost module's gathered weights again
        if enabled:
            self._raw = {p: p.detach().clone() for p in self._parameters()}
            self._load_average()
            return
        if self.is_of_optimizer:
            self.optimizer.train()  # type: ignore[attr-defined]
        for parameter, raw in self._raw.items():
            parameter.copy_(raw)
        self._raw = {}

    def _load_average(self) -> None:
        if self.is_of_optimizer:
            self.optimizer.eval()  # type: ignore[attr-defined]
            return
        for parameter in self._raw:
            state = self.optimizer.state.get(parameter, {})
            if EMA in state:  # else it has never had a gradient
                parameter.copy_(state[EMA])

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
