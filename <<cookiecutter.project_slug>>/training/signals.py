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

# Windows has only some of these. A closed terminal sends SIGHUP. Slurm can send SIGUSR1, and
# submitit SIGUSR2.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
# A Ctrl-C arrives twice: from the terminal and from the launcher. Two signals within this number of
# seconds count as one keystroke.
SAME_KEYSTROKE = 2.0


class StopSignals:
    """Context manager that records SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2.

    Python allows signal handlers only in the main thread. In another thread, this class installs
    no handlers.
    """

    def __init__(self, group: RankGroup):
        self._group = group
        self._reason: str | None = None
        self._time = 0.0
        # `accelerate launch` with a single process exits after a signal, without forwarding the
        # signal. Therefore the exit of the launcher also counts as a signal. A change of the parent
        # process shows that the launcher has exited.
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
        """Return on all ranks whether any rank received a signal or passed `is_broken=True`.

        With several ranks, the result is that of the previous call: see
        `RankGroup.any_rank_at_last_call`.
        """
        if self._launcher is not None and self._launcher != os.getppid():
            self._reason = self._reason or "the exit of its launcher"
        return self._group.any_rank_at_last_call(is_broken or self._reason is not None)

    def stopped(self, outdir: str) -> Stopped:
        """Build the exception that ends a run after the run has been saved."""
        reason = next(filter(None, self._group.gather(self._reason)), "a request")
        return Stopped(f"stopped by {reason} and saved; resume with --restore_dir {outdir}/last")

    def _record(self, number: int, _: object) -> None:
        if self._reason is None:
            self._reason = signal.Signals(number).name
            self._time = time.monotonic()
            if self._group.is_main:
                text = f"\n{self._reason}: saving after this step; a later Ctrl-C exits at once\n"
                os.write(2, text.encode())  # print is not safe in a signal handler
        elif number == signal.SIGINT and time.monotonic() - self._time > SAME_KEYSTROKE:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)


def _is_ignored_hangup(number: int) -> bool:
    """Return whether the signal is SIGHUP and is ignored, as in a run that `nohup` started."""
    is_hangup = signal.Signals(number).name == "SIGHUP"
    return is_hangup and signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Block `SIGNALS` in this thread inside the `with` block.

    Child processes that are started inside the `with` block keep the signals blocked. Otherwise a
    Ctrl-C or a signal to the process group would end the loader processes, and thereby the run. A
    signal that arrives inside the `with` block is delivered at the end of the `with` block, unless
    another thread receives it before.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # may unblock SIGINT and SIGTERM in this thread
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def ended_children() -> Iterator[None]:
    """Kill the child processes that were started inside the `with` block and still run at its end.

    At exit, `multiprocessing` sends SIGTERM to its daemonic child processes, such as loader
    processes, and waits for them. Loader processes block SIGTERM, so Python would wait forever.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
            child.join()
