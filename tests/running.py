"""Functions that run programs in a folder: offline, on the CPU, one thread per process."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

SETTINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
# Without the variables of pytest-xdist: with them, a pytest that a test starts would be a worker.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")} | SETTINGS
ACCELERATE = Path(sys.executable).with_name("accelerate")
TIMEOUT = 300.0  # in seconds; a program that runs longer is killed

# The fork server imports these modules once. It skips modules that are not installed.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("torch", "torch.distributed.fsdp", "torchmetrics.classification", "accelerate.tracking"),
        *("transformers.generation", "transformers.modeling_utils", "transformers.optimization"),
        *("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"),
        *("transformers.tokenization_utils_tokenizers", "datasets", "peft", "sacrebleu"),
        *("matplotlib.figure", "matplotlib.backends.backend_agg"),
    ]
)

Done = subprocess.CompletedProcess[str]


def run(
    folder: Path, *command: str | Path, code: int = 0, timeout: float = TIMEOUT, **variables: str
) -> Done:
    """Run a program in a new process, and return its exit code and output.

    Args:
        folder: The working directory of the program.
        code: The expected exit code.
        timeout: Time limit in seconds.
        variables: Environment variables that are added to `ENVIRONMENT`.

    Raises:
        AssertionError: The exit code is not `code`.
        subprocess.TimeoutExpired: The program ran longer than `timeout`, and was killed.
    """
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=ENVIRONMENT | variables,
        stdin=subprocess.DEVNULL,  # a prompt, as for trust_remote_code, would fail
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return _checked(done, code)


def run_python(
    folder: Path, *command: str | Path, code: int = 0, typed: str = "", ranks: int = 1
) -> Done:
    """Run `python COMMAND...` like `run`, but in processes that are forked from a server.

    The server has already imported the modules passed to `set_forkserver_preload`, which saves
    several seconds. The PYTHONPATH of a forked process consists of the folder and the folder's
    subfolder tests/.

    Args:
        typed: The text that the program reads from standard input.
        ranks: Number of processes. Several processes form a process group, as with a launcher; the
            returned output is that of all of them.

    Raises:
        AssertionError: The exit code of a process is not `code`.
        TimeoutError: A process ran longer than `TIMEOUT`. All processes were killed.
    """
    words = list(map(str, command))
    with tempfile.TemporaryDirectory() as temporary:
        started = [
            _start(words, folder, variables, typed, Path(temporary, str(rank)))
            for rank, variables in enumerate(_variables(ranks))
        ]
        for process, _ in started:
            process.join(TIMEOUT)
        texts = [
            "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
            for files in zip(*(files[1:] for _, files in started), strict=True)
        ]
    codes = [process.exitcode for process, _ in started]
    if None in codes:
        for process, _ in started:
            process.kill()
        raise TimeoutError(f"{words}\n{texts}")
    wrong = next((found for found in codes if found != code), code)
    return _checked(subprocess.CompletedProcess(words, wrong, *texts), code)


def _variables(ranks: int) -> list[dict[str, str]]:
    """Return, for each process, the environment variables that a launcher would set."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _start(
    words: list[str], folder: Path, variables: dict[str, str], typed: str, private: Path
) -> tuple[Any, list[Path]]:
    """Start a process; return it, and the files of its standard input, output and error."""
    private.mkdir()
    files = [private / name for name in ("input", "output", "error")]
    for file, text in zip(files, (typed, "", ""), strict=True):
        file.write_text(text, encoding="utf-8")
    process = FORKS.Process(target=_execute, args=(words, folder, variables, files))
    # The first call also starts the server, which inherits these variables.
    with mock.patch.dict(os.environ, SETTINGS):
        process.start()
    return process, files


def _execute(
    command: list[str], folder: Path, variables: dict[str, str], files: list[Path]
) -> None:
    """Execute `python COMMAND...` in this process."""
    gc.freeze()  # exclude the modules of the server: a collection would take half a second
    os.chdir(folder)
    os.environ.clear()
    added = [str(folder), str(folder / "tests")]
    os.environ.update(ENVIRONMENT | variables, PYTHONPATH=os.pathsep.join(added))
    for descriptor, file in enumerate(files):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY
        os.dup2(os.open(file, flags), descriptor)
    sys.stdin = os.fdopen(0, encoding="utf-8")  # multiprocessing has replaced sys.stdin
    installed = [entry for entry in sys.path if entry.startswith((sys.prefix, sys.base_prefix))]
    sys.path[:] = ["", *added, *installed]
    try:
        _run_main(command)
    finally:
        atexit._run_exitfuncs()  # a forked process does not run the functions of atexit


def _run_main(command: list[str]) -> None:
    first, *rest = command
    if first == "-c":
        sys.argv[:] = [first, *rest[1:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif first == "-m":
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = command
        sys.path[0] = os.path.dirname(os.path.abspath(first))
        runpy.run_path(first, run_name="__main__")


def _checked(done: Done, code: int) -> Done:
    assert done.returncode == code, (done.stdout + done.stderr)[-5000:]
    return done
