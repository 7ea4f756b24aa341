"""Run measurements in forked processes, which have the same initial state and can be killed."""

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

TIMEOUT = 120  # seconds


def run_in(processes: int, log: Path, function: Callable, *args: Any, killed: bool = False) -> Any:
    """Call a function in new processes. Several processes get the variables that a launcher sets.

    Args:
        log: File for the output of all processes.
        killed: Whether a process is expected to be killed, so that there is no result.

    Returns:
        The result of the first process.

    Raises:
        RuntimeError: A process timed out or had an unexpected exit code.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    children = [
        fork.Process(target=_child, args=(sender, rank, processes, port, log, function, args))
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    sender.close()
    deadline = time.monotonic() + TIMEOUT
    try:
        result = receiver.recv() if receiver.poll(TIMEOUT) else None
    except EOFError:  # all processes ended without a result
        result = None
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
        child.join()
    # When one process is killed, another may fail with an error before it is killed, too.
    if None in codes or (-signal.SIGKILL not in codes if killed else any(codes)):
        raise RuntimeError(f"exit codes {codes}:\n{log.read_text()[-3000:]}")
    return result


def _child(
    sender: Connection,
    rank: int,
    processes: int,
    port: int,
    log: Path,
    function: Callable,
    args: tuple,
) -> None:
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if processes > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        group = {"WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ.update(address, **group)
    torch.set_num_threads(1)
    result = function(*args)
    if rank == 0:
        sender.send(result)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    os._exit(0)  # no cleanup, because destroying a process group may hang


class Recorder:
    """Records the examples of each forward pass of this process.

    Args:
        folder: Folder with a file for each process.
        phase: Part of the file name.
        last_pass: Number of forward passes after which this process is killed. Default: no kill.
    """

    def __init__(self, folder: Path, phase: str, last_pass: int | None = None):
        self.path = folder / f"{phase}-{os.environ.get('RANK', '0')}.jsonl"
        self.passes_left = last_pass

    def __call__(self, ids: list[int]) -> None:
        if self.passes_left is not None:
            if self.passes_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.passes_left -= 1
        with self.path.open("a") as file:
            file.write(json.dumps(ids) + "\n")


def recorded(folder: Path, phase: str) -> list[list[list[int]]]:
    """Return the examples of each forward pass of each process."""
    paths = sorted(folder.glob(f"{phase}-*.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
