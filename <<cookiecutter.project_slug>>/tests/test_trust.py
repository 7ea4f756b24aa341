"""No file of a checkpoint is unpickled or executed, even if files were replaced."""

import os
import pickle
import shutil
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from conftest import ROOT
from errors import RunError
from training import atomic

pytestmark = pytest.mark.proof

# Files that a resumed run reads. The run is refused if one of them has another format.
READ = [
    "config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_state.json",
]
# Names of files that other tools unpickle.
ELSEWHERE = [
    "optimizer.bin",
    "optimizer.pt",
    "pytorch_model.bin",
    "random_states_0.pkl",
    "rng_state.pth",
    "scheduler.bin",
    "training_args.bin",
]


class Malice:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trust") / "run"
    paths = [f"--{part}_input={sample / part}.jsonl" for part in ("train", "valid")]
    base = ["--model_id", str(ROOT / "tiny"), "--max_len", "48"]
    train.main([*paths, *base, "--outdir", str(folder), "--max_steps", "1"])
    for version in (folder / atomic.STORE).glob("last.*"):
        if version != (folder / "last").resolve():
            shutil.rmtree(version)  # otherwise a run with a damaged last/ resumes from this version
    return folder


def reseal(folder) -> None:
    """Replace the manifest by one that matches the changed files."""
    (folder / atomic.MANIFEST).unlink()
    atomic._seal(folder)


@pytest.fixture(params=["pickle", "torch"])
def plant(request, tmp_path):
    """Return a function that writes a pickle file and returns the path of a folder.

    Unpickling the file creates this folder.
    """

    def write(path):
        marker = tmp_path / "executed"
        if request.param == "pickle":
            path.write_bytes(pickle.dumps(Malice(marker)))
        else:
            torch.save({"lm_head.weight": Malice(marker)}, path)
        return marker

    return write


def copy_of(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    return tmp_path / "run" / "last"


def test_planted_file_creates_a_folder_when_it_is_unpickled(plant, tmp_path):
    marker = plant(tmp_path / "file.bin")
    with suppress(RuntimeError):  # torch rejects a plain pickle file only after unpickling it
        torch.load(tmp_path / "file.bin", weights_only=False)
    assert marker.is_dir()


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_pickle_in_place_of_any_file_is_not_unpickled(is_sealed, run, plant, tmp_path):
    for name in sorted({*READ, *(file.name for file in (run / "last").iterdir())}):
        last = copy_of(run, tmp_path)
        marker = plant(last / name)
        is_forged = is_sealed and name != atomic.MANIFEST
        if is_forged:
            reseal(last)
        if name in READ or not is_forged:
            with pytest.raises(RunError) as error:
                train.main(["--restore_dir", str(last)])
            assert "\n" not in str(error.value), name
        else:
            train.main(["--restore_dir", str(last)])
        assert not marker.exists(), name
        shutil.rmtree(tmp_path / "run")


def test_additional_pickle_files_are_not_unpickled(run, plant, tmp_path):
    last = copy_of(run, tmp_path)
    for name in ELSEWHERE:
        marker = plant(last / name)
    reseal(last)
    train.main(["--restore_dir", str(last)])
    (last / "model.safetensors").unlink()
    reseal(last)
    with pytest.raises(RunError, match="cannot load the model"):
        train.main(["--restore_dir", str(last)])
    assert not marker.exists()


def test_pickled_weights_of_a_base_model_do_not_run_code(plant, arguments, tmp_path):
    shutil.copytree(ROOT / "tiny", tmp_path / "base")
    marker = plant(tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights.only|pickle"):
        train.main([*arguments, "--model_id", str(tmp_path / "base")])
    assert not marker.exists()


def test_code_of_a_base_model_is_not_executed(arguments, tmp_path):
    shutil.copytree(ROOT / "tiny", tmp_path / "base")
    marker = tmp_path / "executed"
    (tmp_path / "base" / "code.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    config = (tmp_path / "base" / "config.json").read_text()
    classes = '"AutoConfig": "code.Config", "AutoModel": "code.Model"'
    config = config.replace("{", f'{{"auto_map": {{{classes}}},', 1)
    (tmp_path / "base" / "config.json").write_text(config)
    train.main([*arguments, "--model_id", str(tmp_path / "base"), "--max_steps", "1"])
    assert not marker.exists()


def test_weights_of_another_model_are_refused(run, tmp_path):
    last = copy_of(run, tmp_path)
    # Clone the tensors, which may be views of the file that is overwritten below.
    loaded = load_file(last / "model.safetensors")
    weights = {key: tensor.clone() for key, tensor in loaded.items()}
    name = max(weights)
    others = {key: tensor for key, tensor in weights.items() if key != name}
    save_file(others, last / "model.safetensors", {"format": "pt"})
    reseal(last)
    with pytest.raises(RunError, match=rf"missing keys: .*{name}"):
        train.main(["--restore_dir", str(last)])
    save_file({**weights, "other": torch.ones(2)}, last / "model.safetensors", {"format": "pt"})
    reseal(last)
    with pytest.raises(RunError, match="unexpected keys: other"):
        train.main(["--restore_dir", str(last)])


def test_base_model_with_a_broken_weight_file_is_refused(arguments, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(ROOT / "tiny", base)
    (base / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RunError, match="base: cannot load the model"):
        train.main([*arguments, "--model_id", str(base)])
    assert not (tmp_path / "run").exists()
