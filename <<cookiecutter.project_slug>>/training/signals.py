"""Graceful shutdown: after a signal to any rank, all ranks stop after the same step."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from errors import Stopped

from .distributed import RankGroup
from .launcher import launcher_command

# Some do not exist on Windows. SIGHUP: a closed terminal. SIGUSR1, SIGUSR2: Slurm and submitit.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
# A Ctrl-C arrives twice, from the terminal and from the launcher.
SAME_KEYSTROKE = 2.0  # seconds


class StopSignals:
    """Context manager that records SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2.

    Outside the main thread Python allows no signal handlers, and none are installed.
    """

    def __init__(self, group: RankGroup):
        self._group = group
        self._reason: str | None = None
        self._time = 0.0
        # A launcher of a single process exits on a signal without forwarding it.
        self._launcher = os.getppid() if launcher_command() else None
        self._handlers: dict = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            numbers = [number for number in SIGNALS if not _is_ignored_hangup(number)]
            self._handlers = {number: signal.signal(number, self._record) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def stop_requested(self, is_broken: bool = False) -> bool:
        """Return whether any rank received a signal or passed True; the same on all ranks.

        With several ranks the answer is one call late: see `RankGroup.any_rank_at_last_call`.
        """
        if self._launcher is not None and self._launcher != os.getppid():
            self._reason = self._reason or "the exit of its launcher"
        return self._group.any_rank_at_last_call(is_broken or self._reason is not None)

    def stopped(self, outdir: str) -> Stopped:
        """Build the exception that ends a saved run."""
        reason = next(filter(None, self._group.gather(self._reason)), "a request")
        return Stopped(f"stopped by {reason} and saved; resume with --restore_dir {outdir}/last")

    def _record(self, number: int, _: object) -> None:
        if self._reason is None:
            self._reason = signal.Signals(number).name
            self._time = time.monotonic()
            if self._group.is_main:
                text = f"\n{self._reason}: saving after this step; a second Ctrl-C exits at once\n"
                os.write(2, text.encode())  # print is not safe in a signal handler
        elif number == signal.SIGINT and time.monotonic() - self._time > SAME_KEYSTROKE:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)


def _is_ignored_hangup(number: int) -> bool:
    """Whether the run was started by `nohup`, and continues after its terminal is closed."""
    is_hangup = signal.Signals(number).name == "SIGHUP"
    return is_hangup and signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Start child processes in this block: they inherit the mask, which blocks these signals.

    A Ctrl-C or a signal to the process group would otherwise end the loader's workers, and thereby
    the run. A signal that arrives inside the block is delivered to this process at its end.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # unblocks SIGINT and SIGTERM in this process
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def ended_children() -> Iterator[None]:
    """Kill the child processes that are started in this block and still run at its end.

    At exit Python sends SIGTERM to its children and waits for them. The workers of a
    data loader block SIGTERM, so Python would wait forever.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
            child.join()
