"""Run programs in the folder of a project: offline, on the CPU, with one thread per process."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from unittest import mock

SETTINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
# Without the variables of pytest-xdist's workers: a nested pytest would treat itself as a worker.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")} | SETTINGS
ACCELERATE = Path(sys.executable).with_name("accelerate")
TIMEOUT = 300.0  # seconds until a program counts as hanging

# Packages that scripts import; one that is not installed is skipped.
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
    """Run a program in a new process; return its output.

    Args:
        folder: Working directory.
        code: Expected exit code.
        variables: Environment variables in addition to `ENVIRONMENT`.

    Raises:
        AssertionError: The exit code is another one.
    """
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=ENVIRONMENT | variables,
        stdin=subprocess.DEVNULL,  # no prompt to confirm the execution of code
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return _checked(done, code)


def run_python(folder: Path, *command: str | Path, code: int = 0, typed: str = "") -> Done:
    """Do the same as `run` for `python COMMAND...`, in a process forked from a server.

    The server has imported the packages of `FORKS`, so that the process does not spend seconds on
    that. In everything else it is like a process that `python` starts with the folder and its
    subfolder tests/ in PYTHONPATH.

    Args:
        typed: Standard input.
    """
    words = list(map(str, command))
    with tempfile.TemporaryDirectory() as temporary:
        files = [Path(temporary, name) for name in ("input", "output", "error")]
        files[0].write_text(typed, encoding="utf-8")
        process = FORKS.Process(target=_execute, args=(words, folder, files))
        with mock.patch.dict(os.environ, SETTINGS):  # of the server, which the first call starts
            process.start()
        process.join(TIMEOUT)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files[1:]]
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{words}\n{texts}")
    return _checked(subprocess.CompletedProcess(words, process.exitcode, *texts), code)


def _execute(command: list[str], folder: Path, files: list[Path]) -> None:
    """Do in this process what `python` does with the arguments in `command`."""
    os.chdir(folder)
    os.environ.clear()
    added = [str(folder), str(folder / "tests")]
    os.environ.update(ENVIRONMENT, PYTHONPATH=os.pathsep.join(added))
    for descriptor, file in enumerate(files):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(file, flags), descriptor)
    sys.stdin = os.fdopen(0, encoding="utf-8")  # multiprocessing has replaced it
    installed = [entry for entry in sys.path if entry.startswith((sys.prefix, sys.base_prefix))]
    sys.path[:] = ["", *added, *installed]
    try:
        _run_main(command)
    finally:
        atexit._run_exitfuncs()  # a forked process does not run them


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
