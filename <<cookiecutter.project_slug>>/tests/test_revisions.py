"""`--model_id NAME@REVISION` selects a revision of a base model, here from the Hub's cache."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import export
import train
from errors import RunError
from helpers.assertions import assert_equal_tensors, read_state, read_weights
from model.revision import join_revision, split_revision

pytestmark = pytest.mark.proof

COMMITS = {"main": "a" * 40, "v1": "b" * 40, "feature/new": "c" * 40}


@pytest.fixture
def base(arguments, tmp_path, monkeypatch) -> Path:
    """Cache a repository `me/base` with three revisions; return the folder of v1."""
    train.main([*arguments, "--max_steps", "1", "--outdir", str(tmp_path / "first")])
    repository = tmp_path / "cache" / "models--me--base"
    for number, (name, commit) in enumerate(COMMITS.items()):
        (repository / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / name).write_text(commit)
        snapshot = repository / "snapshots" / commit
        shutil.copytree(
            tmp_path / "first" / "best", snapshot, ignore=shutil.ignore_patterns("*state.json")
        )
        weights = load_file(snapshot / "model.safetensors")
        changed = {name: tensor + number for name, tensor in weights.items()}
        save_file(changed, snapshot / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return repository / "snapshots" / COMMITS["v1"]


def test_run_starts_from_a_revision_and_records_its_commit(base, arguments, tmp_path):
    run, expected = tmp_path / "run", tmp_path / "expected"
    one = [*arguments, "--max_steps", "1"]
    train.main([*one, "--model_id", "me/base@v1"])
    train.main([*one, "--model_id", str(base), "--outdir", str(expected)])
    assert_equal_tensors(read_weights(run / "last"), read_weights(expected / "last"))
    assert read_state(run / "last")["commit"] == COMMITS["v1"]
    assert read_state(expected / "last")["commit"] is None
    card = (run / "best" / "README.md").read_text(encoding="utf-8")
    assert "base_model: me/base\n" in card
    assert f"| commit of model_id | {COMMITS['v1']} |" in card
    train.main(["--restore_dir", str(run / "last"), "--max_steps", "2"])
    assert read_state(run / "last")["commit"] == COMMITS["v1"]


def test_revision_may_be_a_commit_or_a_branch_with_a_slash(base, arguments, tmp_path):
    for revision in ("feature/new", COMMITS["feature/new"]):
        outdir = tmp_path / revision.replace("/", "-")
        train.main(
            [*arguments, "--max_steps", "1", "--model_id", f"me/base@{revision}"]
            + ["--outdir", str(outdir)]
        )
        assert read_state(outdir / "last")["commit"] == COMMITS["feature/new"]


def test_adapter_keeps_the_commit_of_its_base_model(base, arguments, tmp_path):
    run = tmp_path / "run"
    train.main([*arguments, "--max_steps", "1", "--lora_rank", "2", "--model_id", "me/base@v1"])
    saved = json.loads((run / "best" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (saved["base_model_name_or_path"], saved["revision"]) == ("me/base", COMMITS["v1"])
    refs = base.parent.parent / "refs"
    (refs / "v1").write_text(COMMITS["main"])  # move the tag
    train.main(["--restore_dir", str(run / "last"), "--max_steps", "2"])
    again = json.loads((run / "last" / "adapter_config.json").read_text(encoding="utf-8"))
    assert again["revision"] == COMMITS["v1"]
    export.main(["--checkpoint", str(run / "best"), "--output", str(tmp_path / "merged")])
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    original = load_file(base / "model.safetensors")
    kept = [name for name in merged if "embed" in name and name in original]  # not adapted
    assert kept and all(torch.equal(merged[name], original[name]) for name in kept)


def test_checkpoint_of_a_revision_is_exported(base, tmp_path):
    export.main(["--checkpoint", "me/base@v1", "--output", str(tmp_path / "exported")])
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert_equal_tensors(exported, load_file(base / "model.safetensors"))


def test_unknown_revision_is_refused_in_one_sentence(base, arguments, tmp_path):
    with pytest.raises(RunError, match="me/base@v9: cannot load") as raised:
        train.main([*arguments, "--model_id", "me/base@v9"])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_folder_with_an_at_sign_is_not_split_into_name_and_revision(sample, arguments, tmp_path):
    shutil.copytree(sample / "tiny", tmp_path / "tiny@v1")
    train.main([*arguments, "--max_steps", "1", "--model_id", str(tmp_path / "tiny@v1")])
    assert read_state(tmp_path / "run" / "last")["commit"] is None


def test_name_and_revision_are_split(tmp_path):
    for name, revision in (("me/base", "v1"), ("base", "refs/pr/1")):
        assert split_revision(f"{name}@{revision}") == (name, {"revision": revision})
        assert join_revision(name, revision) == f"{name}@{revision}"
    for whole in ("me/base", "base@", "@v1", str(tmp_path)):
        assert split_revision(whole) == (whole, {})
    assert join_revision(str(tmp_path), "v1") == str(tmp_path)
