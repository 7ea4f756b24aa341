"""Run train.py in a child process."""

import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from errors import STOPPED, RunError, Stopped

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


class Training:
    """Runs train.py, and forwards signals to it.

    Args:
        launch: Launch command, such as "accelerate launch". "python" means this interpreter.

    Raises:
        RunError: There is no such command.
    """

    def __init__(self, launch: str):
        try:
            words = shlex.split(launch)
        except ValueError:  # an unclosed quotation mark
            words = []
        self._command = [sys.executable if word == "python" else word for word in words]
        if not words or shutil.which(self._command[0]) is None:
            raise RunError(f"--launch {launch}: no such command")
        self._child: subprocess.Popen | None = None
        self._is_stopped = False

    def run(self, arguments: list[str], output: Path) -> int:
        """Run train.py with the launch command; return the exit code of this command.

        Args:
            output: File to which the output of train.py is appended.

        Raises:
            Stopped: This process or train.py received a signal.
        """
        for name in SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._forward)
        command = [*self._command, "train.py", *arguments]
        with output.open("ab") as file:
            self._child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            if self._is_stopped:  # a signal arrived before the child process existed
                self._child.send_signal(signal.SIGTERM)
            code = self._child.wait()
        # A launcher replaces the exit code of train.py, so `_forward` records the signal.
        if self._is_stopped or code == STOPPED:
            raise Stopped("stopped; run the same command to continue")
        return code

    def _forward(self, number: int, frame: Any) -> None:
        self._is_stopped = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)
