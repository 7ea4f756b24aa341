"""Runs killed by SIGKILL at random moments resume bit-identically."""

import pytest

from helpers.kill_loop import kill_and_resume

pytestmark = pytest.mark.proof


@pytest.mark.parametrize("processes", [1, 2])
def test_repeatedly_killed_run_is_bit_identical(processes, arguments, tmp_path):
    outdir = arguments.index("--outdir")
    arguments[outdir : outdir + 2] = ["--save_steps", "1", "--epochs", "3"]
    counts = kill_and_resume(arguments, tmp_path, kills=5, processes=processes, seed=processes)
    assert counts.kills >= 5
    assert counts.runs >= 1
