"""The files of configs/: Accelerate knows all that they say, and they say how to use them."""

import os
from contextlib import ExitStack
from importlib.util import find_spec

import pytest

from launching import CONFIGS, read_config
from real_runs import Run

NAMES = sorted(path.stem for path in CONFIGS.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_knows_every_key(name):
    args = read_config(name)
    assert args.num_processes >= 1
    assert args.mixed_precision in ("no", "bf16")


@pytest.mark.parametrize("name", NAMES)
def test_each_begins_with_its_command(name):
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    comment = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("# ")
    assert any(f"accelerate launch --config_file configs/{name}.yaml" in line for line in comment)


def test_a_renamed_key_is_noticed(tmp_path, monkeypatch):
    text = (CONFIGS / "fsdp2.yaml").read_text(encoding="utf-8")
    (tmp_path / "fsdp2.yaml").write_text(text.replace("fsdp_reshard_after", "fsdp_gather_before"))
    monkeypatch.setattr("launching.CONFIGS", tmp_path)
    with pytest.raises(ValueError, match="fsdp_gather_before_forward"):
        read_config("fsdp2")


def ask_for_deepspeed(stack: ExitStack) -> None:
    os.environ.update(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_USE_CPU="false", LOCAL_RANK="0")


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_deepspeed_that_is_missing_is_told(arguments, tmp_path):
    run = Run(arguments, tmp_path / "output", patch=ask_for_deepspeed)
    assert run.wait() == [2]
    assert "DeepSpeed is not installed" in run.output()
    assert "Traceback" not in run.output()
    assert not (tmp_path / "run").exists()
