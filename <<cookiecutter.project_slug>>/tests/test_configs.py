"""Accelerate accepts each key of the files in configs/. Comments in the files show the commands."""

from functools import partial
from importlib.util import find_spec

import pytest

from helpers.launch_env import CONFIGS, read_config, variables
from helpers.processes import Launch

NAMES = sorted(path.stem for path in CONFIGS.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_accepts_every_key(name):
    args = read_config(CONFIGS / f"{name}.yaml")
    assert args.num_processes >= 1
    assert args.mixed_precision in ("no", "bf16")


@pytest.mark.parametrize("name", NAMES)
def test_each_file_has_its_command_in_a_comment(name):
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    comment = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("# ")
    assert any(f"accelerate launch --config_file configs/{name}.yaml" in line for line in comment)


def test_unknown_key_of_the_fsdp_settings_is_an_error(tmp_path):
    text = (CONFIGS / "fsdp2.yaml").read_text(encoding="utf-8")
    path = tmp_path / "fsdp2.yaml"
    path.write_text(text.replace("fsdp_reshard_after", "fsdp_gather_before"))
    with pytest.raises(ValueError, match="fsdp_gather_before_forward"):
        read_config(path)


@pytest.mark.proof
@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_missing_deepspeed_is_reported(arguments, tmp_path):
    patch = partial(
        variables, ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_USE_CPU="false", LOCAL_RANK="0"
    )
    output = Launch(arguments, tmp_path / "output", patch=patch).expect(2)
    assert "DeepSpeed is not installed" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
