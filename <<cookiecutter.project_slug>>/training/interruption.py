"""Stopping from outside: a signal to any one process, and all stop after the same step."""

import os
import signal
import time

from errors import Stopped

from .launch import launcher_command
from .peers import Peers

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A Ctrl-C reaches a process twice, from the terminal and from its launcher.
SAME_KEYSTROKE = 2.0  # seconds


class Interruption:
    """Takes note of signals while it is entered; the loop asks for them between its steps."""

    def __init__(self, peers: Peers):
        self.peers = peers
        self._reason: str | None = None
        self._time = 0.0
        # A launcher of one process dies of a signal without passing it on.
        self._parent = os.getppid() if launcher_command() else None

    def __enter__(self) -> "Interruption":
        self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def is_due(self, is_broken: bool = False) -> bool:
        """Whether a process was signalled or, as given here, is broken: the same answer in all."""
        if self._parent not in (None, os.getppid()):
            self._reason = self._reason or "the end of its launcher"
        return self.peers.any(is_broken or self._reason is not None)

    def stop(self, outdir: str) -> None:
        """End the run, which has been saved."""
        reason = next(filter(None, self.peers.gather(self._reason)))
        raise Stopped(f"stopped by {reason} and saved; go on with --restore_dir {outdir}/last")

    def _note(self, number: int, _) -> None:
        if self._reason is None:
            self._reason, self._time = signal.Signals(number).name, time.monotonic()
            if self.peers.is_main:
                words = f"\n{self._reason}: saving after this step; a second Ctrl-C ends at once\n"
                os.write(2, words.encode())  # print is not safe in a signal handler
        elif number == signal.SIGINT and time.monotonic() - self._time > SAME_KEYSTROKE:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
