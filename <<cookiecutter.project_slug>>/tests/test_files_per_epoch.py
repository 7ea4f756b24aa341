"""`--files_per_epoch`: each epoch trains on some files. The cache has the files of one epoch."""

from pathlib import Path

import datasets
import pytest

import train
from errors import DataError, RunError
from helpers import seams
from helpers.assertions import assert_bit_identical
from helpers.seams import Killed
from training.contract import Task

pytestmark = pytest.mark.proof


@pytest.fixture
def many(arguments, sample, tmp_path, monkeypatch) -> list[str]:
    """Arguments of a run on five files, at most two per epoch. The cache is a temporary folder."""
    lines = (sample / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "many").mkdir()
    for number in range(5):
        text = "".join(lines[number::5] * 2)
        (tmp_path / "many" / f"part-{number}.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pattern = str(tmp_path / "many" / "part-*.jsonl")
    return [*arguments, "--train_input", pattern, "--files_per_epoch", "2", "--max_steps", "20"]


@pytest.fixture
def files_read(monkeypatch, tmp_path) -> list[list[str]]:
    """The names of the training files that each epoch reads.

    At each read, the fixture checks that the cache has the files of at most one epoch.
    """
    read = Task.read
    epochs = []

    def recording(self, source, *args, **options):
        if isinstance(source, list):
            epochs.append([Path(file).name[-12:] for file in source])
            assert len(list((tmp_path / "cache" / "epochs").glob("*/*"))) <= 1
        return read(self, source, *args, **options)

    monkeypatch.setattr(Task, "read", recording)
    return epochs


def test_each_file_is_used_once_before_any_file_is_used_again(many, files_read, tmp_path):
    train.main([*many, "--max_steps", "60"])
    assert len(files_read) >= 6
    for begin in (0, 3):
        turn = [name for files in files_read[begin : begin + 3] for name in files]
        assert sorted(turn) == [f"part-{number}.jsonl" for number in range(5)]
    assert files_read[:3] != files_read[3:6]
    assert not list((tmp_path / "cache" / "epochs").iterdir())


def test_resumed_run_is_bit_identical_with_files_per_epoch(many, files_read, tmp_path):
    many += ["--save_steps", "1"]
    train.main([*many, "--outdir", str(tmp_path / "whole")])
    whole = list(files_read)
    in_later_epoch = 15
    with seams.killed_before_micro_batch(in_later_epoch), pytest.raises(Killed):
        train.main(many)
    files_read.clear()
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert len(files_read) < len(whole) and files_read == whole[-len(files_read) :]
    assert_bit_identical(tmp_path / "run", tmp_path / "whole")


def test_broken_file_ends_a_run_that_resumes_bit_identically(many, files_read, tmp_path):
    train.main([*many, "--outdir", str(tmp_path / "whole")])
    broken = tmp_path / "many" / files_read[1][0]
    text = broken.read_text(encoding="utf-8")
    broken.write_text(text + '{"text\n', encoding="utf-8")
    with pytest.raises(DataError, match=f"{broken.name}:"):
        train.main(many)
    broken.write_text(text, encoding="utf-8")
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert_bit_identical(tmp_path / "run", tmp_path / "whole")


def test_missing_remote_file_is_reported(many, tmp_path):
    with pytest.raises((RunError, DataError), match="part-9.jsonl: "):
        train.main([*many, "--train_input", f"file://{tmp_path}/many/part-9.jsonl"])


def test_remote_files_are_used_in_the_same_epochs_as_local_files(many, files_read, tmp_path):
    train.main([*many, "--outdir", str(tmp_path / "local")])
    local = list(files_read)
    files_read.clear()
    train.main([*many, "--train_input", f"file://{tmp_path}/many/part-*.jsonl"])
    assert files_read == local
    assert (tmp_path / "run" / "log.json").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--max_steps", "5", "--train_input", "org/name:train"], "org/name:train: "),
        (["--max_steps", "5", "--train_input", "nowhere://x/*.jsonl"], "nowhere://x"),
        ([], "expected --max_steps, too"),
    ],
)
def test_source_without_files_or_missing_max_steps_is_refused(more, sentence, arguments):
    with pytest.raises((RunError, DataError), match=sentence):
        train.main([*arguments, "--files_per_epoch", "2", *more])
