"""A second run in the same output directory is refused with one sentence."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

import training.opening
from helpers.assertions import assert_bit_identical
from helpers.processes import TIMEOUT, Launch

pytestmark = pytest.mark.proof


def wait_for(path: Path, run: Launch) -> None:
    until = time.monotonic() + TIMEOUT
    while not path.exists():
        assert time.monotonic() < until, run.output()
        time.sleep(0.01)


@contextmanager
def start_delayed_until(go: Path) -> Iterator[None]:
    """Make a run wait after it checks its output directory and before it locks that directory."""
    start = training.opening.start

    def waiting(*args):
        go.with_suffix(".waiting").touch()
        while not go.exists():
            time.sleep(0.01)
        return start(*args)

    with mock.patch.object(training.opening, "start", waiting):
        yield


def test_second_run_in_a_folder_is_refused_while_the_first_runs(arguments, tmp_path):
    endless = [*arguments, "--epochs", "10000", "--save_steps", "1"]
    run = Launch(endless, tmp_path / "output")
    wait_for(tmp_path / "run" / "last", run)
    other = [*arguments, "--restore_dir", "auto"]
    output = Launch(other, tmp_path / "other").expect(2)
    assert f"{tmp_path}/run: another run is using this folder" in output
    assert output.count("\n") == 1
    assert run.processes[0].exitcode is None
    run.kill()
    # After the kill, the folder is no longer locked.
    Launch([*other, "--max_steps", "1"], tmp_path / "after").expect()


@pytest.mark.parametrize("more", [[], ["--restore_dir", "auto"]])
def test_run_that_starts_slowly_does_not_overwrite_another_run(
    more, arguments, tmp_path, uninterrupted
):
    go = tmp_path / "go"
    slow = Launch([*arguments, *more], tmp_path / "slow", patch=partial(start_delayed_until, go))
    wait_for(go.with_suffix(".waiting"), slow)
    Launch([*arguments, *more], tmp_path / "quick").expect()
    go.touch()
    output = slow.expect(2)
    assert output.count("\n") == 1
    assert "changed while this run started" in output or "already contains a run" in output
    assert_bit_identical(tmp_path / "run", uninterrupted([*arguments, *more]))
