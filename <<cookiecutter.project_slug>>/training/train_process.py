"""Run train.py in a child process."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from errors import STOPPED, Stopped

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


class Training:
    """Runs train.py, and forwards signals to it.

    Args:
        launch: Launch command, such as "accelerate launch". "python" means this interpreter.
    """

    def __init__(self, launch: str):
        self._command = [sys.executable if w == "python" else w for w in shlex.split(launch)]
        self._child: subprocess.Popen | None = None
        self._is_stopped = False
        for name in SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._forward)

    def run(self, arguments: list[str], output: Path) -> int:
        """Run train.py; return its exit code.

        Args:
            output: File to append the output to.

        Raises:
            Stopped: This process or train.py received a signal.
        """
        command = [*self._command, "train.py", *arguments]
        with output.open("ab") as file:
            self._child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            code = self._child.wait()
        # A launcher replaces the exit code of train.py, so `_forward` records the signal.
        if self._is_stopped or code == STOPPED:
            raise Stopped("stopped; run the same command to continue")
        return code

    def _forward(self, number: int, frame: Any) -> None:
        self._is_stopped = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)
