"""Settings of Accelerate that train.py does not follow are refused."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from helpers.launch_env import fsdp2, variables
from helpers.processes import Launch

pytestmark = pytest.mark.proof

DYNAMO = "ACCELERATE_DYNAMO_BACKEND"


def assert_refused(output: str, sentence: str, outdir: Path) -> None:
    lines = [line for line in output.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1, output
    assert sentence in lines[0]
    assert "Traceback" not in output
    assert not outdir.exists()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "`--accumulation 4` for train.py"),
        (DYNAMO, "INDUCTOR", "dynamo_backend inductor; expected `no` there, and `--compile`"),
        (DYNAMO, "eager", "dynamo_backend eager; expected `no`"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "fp8"),
        ("ACCELERATE_MIXED_PRECISION", "bf61", "bf61"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "fp16"),
    ],
)
def test_setting_that_train_py_does_not_follow_is_refused(
    name, value, sentence, processes, arguments, tmp_path
):
    patch = partial(variables, **{name: value})
    output = Launch(arguments, tmp_path / "output", processes, patch).expect(2)
    assert_refused(output, sentence, tmp_path / "run")


def test_fsdp1_is_refused(arguments, tmp_path):
    """Files of older versions of `accelerate config` have no `fsdp_version`; its default is 1."""
    patch = partial(fsdp2, also=partial(variables, FSDP_VERSION="1"))
    output = Launch(arguments, tmp_path / "output", 2, patch).expect(2)
    assert_refused(output, "fsdp_version 1: expected `fsdp_version: 2`", tmp_path / "run")


@pytest.mark.parametrize("place", ["option", "default"])
def test_launch_that_formed_no_process_group_is_refused(place, arguments, tmp_path):
    """The launcher starts one process, although its configuration file requests two."""
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_CPU",
        "num_processes": 2,
        "num_machines": 1,
        "machine_rank": 0,
        "mixed_precision": "no",
        "use_cpu": True,
    }
    file = tmp_path / "accelerate" / "default_config.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(config))
    option = ["--config_file", str(file)] if place == "option" else []
    home = {} if place == "option" else {"HF_HOME": str(tmp_path)}
    environment = {**os.environ, **home}
    del environment["ACCELERATE_USE_CPU"]
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", *option, "train.py"]
    done = subprocess.run(
        [*launch, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert "train.py: 2 processes were requested" in done.stderr
    assert not (tmp_path / "run").exists()
