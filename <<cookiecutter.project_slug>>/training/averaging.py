"""The average of the weights over the steps, which is validated and saved as best/.

Training continues from the raw weights (not averaged), which are saved as last/. The optimizer
state in last/ contains the average or, for a schedule-free optimizer, what is needed to compute it.
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

# Key of the average in the optimizer's state of a parameter. The average is saved, sharded and
# loaded together with that state.
EMA = "ema"


class WeightAverage:
    """The exponential moving average of the weights, or the average of a schedule-free optimizer.

    The moving average of a parameter starts with the value after the first step in which the
    parameter has a gradient. Update t replaces the moving average with
    `d * average + (1 - d) * weights`, where `d = min(decay, (1 + t) / (10 + t))`, as in
    TensorFlow's `ExponentialMovingAverage`: the decay is smaller at first, so that early weights
    have little influence on the average of a short run. Only trained parameters are averaged, not
    buffers.

    A schedule-free optimizer computes an average itself. Its method `eval()` replaces the weights
    with the average, and `train()` restores the weights.

    Args:
        optimizer: An optimizer whose state is still empty. If the optimizer has a method `eval()`,
            its method `train()` is called.
        decay: Decay of the exponential moving average; 0 for no moving average.
        updates: Number of updates before the run was resumed; 0 in a new run.
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
        """If there is an average, check that `save_pretrained` can save it instead of the weights.

        Raises:
            RunError: `save_pretrained` has no parameter `state_dict`.
        """
        if self.exists and "state_dict" not in inspect.signature(save_pretrained).parameters:
            raise RunError(
                "model/modeling.py: save_pretrained has no parameter state_dict; expected one, to "
                "save the average of the weights as best/"
            )

    @property
    def exists(self) -> bool:
        """Whether there is an average, which is validated instead of the raw weights."""
        return self.decay > 0 or self.is_of_optimizer

    @torch.no_grad()
    def update(self) -> None:
        """Update the moving average.

        Call this between `optimizer.step()` and `optimizer.zero_grad()`.
        """
        if not self.decay:
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = []
        weights = []
        for parameter in self._parameters():
            state = self.optimizer.state.get(parameter, {})
            if EMA not in state:
                # torch initializes the state of a parameter in the first step with a gradient, and
                # only if the state is empty. Therefore do not add an average before that step.
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
        """Put the average, or the raw weights if not `enabled`, into the model; undo this at exit.

        If there is no average, the model always contains the raw weights. The raw weights are
        restored from a copy, since `train()` after `eval()` would round them.
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
        reshard(self.model)  # FSDP2 would reuse the old gathered weights of the outermost module
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
            if EMA in state:  # otherwise the parameter has never had a gradient
                parameter.copy_(state[EMA])

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
