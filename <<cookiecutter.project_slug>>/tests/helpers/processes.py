"""Run the function `main` of a module in one or several processes, as a launcher does.

The processes are forked from a server that has already imported train.py and the packages that a
run imports later.
"""

import importlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 120.0  # seconds after which a run is considered to hang
STOPPED = 75  # exit code of a run that was stopped by a signal and has saved

Patch = Callable[[], AbstractContextManager]

# Do not use the start method "fork", because the process of the tests has threads.
FORKS = multiprocessing.get_context("forkserver")
LATE = ["datasets", "matplotlib.figure", "matplotlib.backends.backend_agg", "torchmetrics"]
LATE += ["sacrebleu", "peft", "torch.distributed.fsdp", "helpers.warm"]
FORKS.set_forkserver_preload(["train", *LATE])  # a package that is not installed is skipped


class Launch:
    """A run in separate processes; the output of each process is written to a file.

    Args:
        arguments: Command line arguments.
        output: Folder for the files with the output.
        processes: Number of processes, which form one process group.
        patch: Picklable function that returns a context manager. `main` runs in this context.
        module: Name of the module whose function `main` is called.
    """

    def __init__(
        self,
        arguments: list[str],
        output: Path,
        processes: int = 1,
        patch: Patch = nullcontext,
        module: str = "train",
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        output.mkdir(parents=True, exist_ok=True)
        self.outputs = [output / f"{rank}.txt" for rank in range(processes)]
        self.processes = []
        for rank, file in enumerate(self.outputs):
            environment = _environment(rank, processes, port) if processes > 1 else {}
            process = FORKS.Process(target=_run, args=(module, arguments, environment, file, patch))
            process.start()
            self.processes.append(process)

    def wait(self, timeout: float = TIMEOUT) -> list[int]:
        """Wait for all processes; return their exit codes, -N if signal N ended the process.

        Raises:
            TimeoutError: A process did not end in `timeout` seconds. All processes are killed.
        """
        for process in self.processes:
            process.join(timeout)
            if process.exitcode is None:
                self.kill()
                raise TimeoutError(f"a process hangs:\n{self.output()[-2000:]}")
        return [process.exitcode or 0 for process in self.processes]

    def expect(self, code: int = 0) -> str:
        """Check that all processes exit with this code; return the output of the first process."""
        codes = self.wait()
        everything = "\n".join(map(self.output, range(len(codes))))
        assert codes == [code] * len(codes), f"{codes}\n{everything[-4000:]}"
        return self.output()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def output(self, rank: int = 0) -> str:
        text = self.outputs[rank].read_text(errors="replace") if self.outputs[rank].exists() else ""
        return text.replace("\r", "\n")


def _environment(rank: int, processes: int, port: str) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def _run(
    module: str, arguments: list[str], environment: dict[str, str], output: Path, patch: Patch
) -> None:
    os.environ.update(environment)
    os.chdir(ROOT)
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [f"{module}.py", *arguments]
    from training.launch import run

    with patch():
        code = run(importlib.import_module(module).main)
    sys.exit(code)
