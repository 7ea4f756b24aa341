"""A gloo process group for control messages between the ranks of a run."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from errors import RunError, UserError

# The other ranks wait while one rank tokenizes or saves. This can take longer than 30 minutes, the
# default timeout of torch.
TIMEOUT = timedelta(hours=12)


def is_lost_connection(error: Exception) -> bool:
    """Return whether a collective failed because another process ended or cannot be reached."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


class RankGroup:
    """All ranks of a run. Every rank has to call the same methods in the same order."""

    def __init__(self, accelerator: Accelerator):
        self.rank: int = accelerator.process_index
        self.size: int = accelerator.num_processes
        self.is_main: bool = accelerator.is_main_process
        self.is_local_main: bool = accelerator.is_local_main_process
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT) if self.size > 1 else None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in rank order."""
        if self._group is None:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def any_rank_at_last_call(self, flag: bool) -> bool:
        """Return whether any rank passed True at the previous call; False at the first call.

        The reduction of a call runs in the background, and the next call returns its result. A rank
        therefore waits only for ranks that have not yet made the previous call. With a single rank,
        return the flag of this call.
        """
        if self._group is None:
            return flag
        previous = self._pending
        flags = torch.tensor([flag], dtype=torch.int32)
        work = dist.all_reduce(flags, dist.ReduceOp.MAX, self._group, async_op=True)
        self._pending = (work, flags)
        if previous is None:
            return False
        previous[0].wait()
        return bool(previous[1])

    def on_main(self, action: Callable[[], None]) -> None:
        """Run `action` on the main rank while the others wait.

        Raises:
            Exception: See `in_agreement`.
        """
        with self.in_agreement():
            if self.is_main:
                action()

    @contextmanager
    def in_agreement(self) -> Iterator[None]:
        """Continue only if no rank has failed inside the block.

        Raises:
            Exception: On a rank that failed, its own exception; on the others, a RunError with the
                message of the lowest rank that failed.
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        kind = "" if isinstance(own, UserError) else f"{type(own).__name__}: "
        fault = None if own is None else f"rank {self.rank} on {socket.gethostname()}: {kind}{own}"
        faults = [fault for fault in self.gather(fault) if fault is not None]
        if own is not None:
            raise own
        if faults:
            raise RunError(f"stopped because of {faults[0]}")

    def expect_equal(self, values: dict[str, Any]) -> None:
        """Compare named values between all ranks.

        Raises:
            RunError: On all ranks, if a value differs between ranks.
        """
        gathered = self.gather((socket.gethostname(), values))
        first_host, first = gathered[0]
        for rank, (host, others) in enumerate(gathered):
            for name, value in first.items():
                if repr(others[name]) != repr(value):  # compare by repr, since NaN != NaN
                    raise RunError(
                        f"{name}: {others[name]} on rank {rank} ({host}), {value} on rank 0 "
                        f"({first_host}); expected the same on all ranks"
                    )

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Run the block first on one rank of each machine, then on the others.

        The other ranks can use the files that the first rank caches. With
        `Accelerator.local_main_process_first`, they would wait forever if the first rank failed.
        """
        if not self.is_local_main:
            self.gather(None)
        try:
            yield
        finally:
            if self.is_local_main:
                self.gather(None)
