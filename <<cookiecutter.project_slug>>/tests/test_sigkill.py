"""SIGKILL at random moments: nothing is lost but the work since the last save."""

import pytest
from killing import kill_again_and_again


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    processes, arguments, tmp_path
):
    outdir = arguments.index("--outdir")
    arguments[outdir : outdir + 2] = ["--save_steps", "1", "--epochs", "3"]
    figures = kill_again_and_again(
        arguments, tmp_path, kills=5, processes=processes, seed=processes
    )
    assert figures.kills >= 5
    assert figures.runs >= 1
