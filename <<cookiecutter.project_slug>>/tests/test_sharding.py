"""FSDP2 on two CPU processes gives what DDP gives, and a whole model."""

import pytest
import torch

from launching import shard
from model.modeling import Model
from outcome import result


def test_it_gives_what_ddp_gives_and_best_is_whole(in_two, tmp_path):
    output = in_two("sharded", patch=shard)
    assert "SHARDED: 0" not in output and "SHARDED" in output
    in_two("ddp")
    *parts, log, _ = result(tmp_path / "sharded")
    *expected_parts, expected_log, _ = result(tmp_path / "ddp")
    for tensors, expected in zip(parts, expected_parts, strict=True):
        assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in expected.items()}
    for epoch, entry in expected_log.items():
        for part in ("train_log", "valid_log"):
            assert log[epoch][part] == pytest.approx(entry[part], rel=1e-4)
    model = Model.from_pretrained(tmp_path / "sharded" / "best")
    assert all(p.dtype == torch.float32 for p in model.parameters())
