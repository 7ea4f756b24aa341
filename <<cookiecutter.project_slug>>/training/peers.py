"""What the processes of a run tell one another on the CPU, beside the gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from errors import RunError

# One process tokenizes or saves while the others wait; torch would give up after some minutes.
PATIENCE = timedelta(hours=12)


class Peers:
    """All processes of a run. All call the same methods, in the same order."""

    def __init__(self, accelerator: Accelerator):
        self.is_main = accelerator.is_main_process
        self.is_local_main = accelerator.is_local_main_process
        self._world = accelerator.num_processes
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if self._world > 1 else None
        self._asked: tuple[dist.Work, torch.Tensor] | None = None

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order; each waits for the others."""
        if self._group is None:
            return [value]
        values = [None] * self._world
        dist.all_gather_object(values, value, group=self._group)
        return values

    def any(self, flag: bool) -> bool:
        """Whether one of them raised its flag, at the call before this one: nobody has to wait.

        A single process is told at once.
        """
        if self._group is None:
            return flag
        before, flags = self._asked, torch.tensor([flag], dtype=torch.int32)
        self._asked = dist.all_reduce(flags, dist.ReduceOp.MAX, self._group, async_op=True), flags
        if before is None:
            return False
        before[0].wait()
        return bool(before[1])

    def main_does(self, action: Callable[[], None]) -> None:
        """Let the main process do something while the others wait.

        Raises:
            RunError: in all processes, if `action` raised it.
        """
        fault = None
        if self.is_main:
            try:
                action()
            except RunError as error:
                fault = str(error)
        if fault := self.gather(fault)[0]:
            raise RunError(fault)

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Let one process of each machine go first, and the others find what it has cached.

        Accelerator's own leaves the others waiting when the first one fails.
        """
        if not self.is_local_main:
            self.gather(None)
        try:
            yield
        finally:
            if self.is_local_main:
                self.gather(None)
