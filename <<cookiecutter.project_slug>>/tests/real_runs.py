"""Runs in real processes, forked from one that has already imported everything."""

import contextlib
import importlib
import multiprocessing
import os
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TIMEOUT = 120.0  # seconds in which any run of the tests is over, or hangs

# A fork server, not a fork: the tests' own process has threads.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train"])


class Run:
    """A run in one process or several, as a launcher starts them; their output is in a file each.

    Args:
        output: A folder for what they print.
        patch: A function to call in each before the run begins: it has to be importable.
        module: Whose `main` is run.
    """

    def __init__(
        self,
        arguments: list[str],
        output: Path,
        processes: int = 1,
        patch=None,
        module: str = "train",
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        output.mkdir(parents=True, exist_ok=True)
        self.outputs = [output / f"{rank}.txt" for rank in range(processes)]
        self.processes = []
        for rank, file in enumerate(self.outputs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {**place, **address} if processes > 1 else {}
            process = FORKS.Process(target=_run, args=(module, arguments, environment, file, patch))
            process.start()
            self.processes.append(process)

    def wait(self, timeout: float = TIMEOUT) -> list[int]:
        """The exit codes of all processes; what a signal has ended has a negative one.

        Raises:
            TimeoutError: one of them hangs; all have been killed.
        """
        for process in self.processes:
            process.join(timeout)
            if process.exitcode is None:
                self.kill()
                raise TimeoutError(f"a process hangs:\n{self.output()[-2000:]}")
        return [process.exitcode or 0 for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def output(self, rank: int = 0) -> str:
        text = self.outputs[rank].read_text(errors="replace") if self.outputs[rank].exists() else ""
        return text.replace("\r", "\n")


def _run(
    module: str, arguments: list[str], environment: dict[str, str], output: Path, patch
) -> None:
    """What a process does that a launcher has started."""
    os.environ.update(environment)
    os.chdir(ROOT)
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [f"{module}.py", *arguments]
    from errors import DataError
    from training.launch import run

    with contextlib.ExitStack() as stack:
        if patch is not None:
            patch(stack)
        code = run(importlib.import_module(module).main, DataError)
    sys.exit(code)
