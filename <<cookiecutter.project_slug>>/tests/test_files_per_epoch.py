"""Data too large to hold: some of the files in each epoch, nothing of the others on the disk."""

from pathlib import Path

import datasets
import pytest
from outcome import assert_same

import train
from errors import RunError
from test_runs import Killed, stop_after


@pytest.fixture
def many(arguments, sample, tmp_path, monkeypatch) -> list[str]:
    """A run over five files, two in each epoch, with a cache of its own."""
    lines = (sample / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "many").mkdir()
    for number in range(5):
        text = "".join(lines[number::5] * 2)
        (tmp_path / "many" / f"part-{number}.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pattern = str(tmp_path / "many" / "part-*.jsonl")
    return [*arguments, "--train_input", pattern, "--files_per_epoch", "2", "--max_steps", "20"]


@pytest.fixture
def read(monkeypatch, tmp_path) -> list[list[str]]:
    """The training files that were read, epoch by epoch; at no time are there more in the cache."""
    generate_dataset, epochs = train.generate_dataset, []

    def telling(source, *args, **options):
        if isinstance(source, list):
            epochs.append([Path(file).name[-12:] for file in source])
            assert len(list((tmp_path / "cache" / "epochs").glob("*/*"))) <= 1
        return generate_dataset(source, *args, **options)

    monkeypatch.setattr(train, "generate_dataset", telling)
    return epochs


def test_each_file_is_taken_once_before_any_is_taken_again(many, read, tmp_path):
    train.main([*many, "--max_steps", "60"])
    assert len(read) >= 6
    for begin in (0, 3):
        turn = [name for files in read[begin : begin + 3] for name in files]
        assert sorted(turn) == [f"part-{number}.jsonl" for number in range(5)]
    assert read[:3] != read[3:6]
    assert not list((tmp_path / "cache" / "epochs").iterdir())


def test_a_stopped_run_ends_as_if_it_had_not_been(many, read, tmp_path, monkeypatch):
    many += ["--save_steps", "1"]
    train.main([*many, "--outdir", str(tmp_path / "whole")])
    whole = list(read)
    with monkeypatch.context() as patch:
        stop_after(patch, 15)  # after the first epoch
        with pytest.raises(Killed):
            train.main(many)
    read.clear()
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert len(read) < len(whole) and read == whole[-len(read) :]
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_broken_file_costs_nothing_of_what_was_learned(many, read, tmp_path):
    train.main([*many, "--outdir", str(tmp_path / "whole")])
    broken = tmp_path / "many" / read[1][0]
    text = broken.read_text(encoding="utf-8")
    broken.write_text(text + '{"text\n', encoding="utf-8")
    with pytest.raises(train.DataError, match=f"{broken.name}:"):
        train.main(many)
    broken.write_text(text, encoding="utf-8")
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_file_that_is_gone_is_told(many, tmp_path):
    with pytest.raises(train.DataError, match="part-9.jsonl: cannot be fetched"):
        train.main([*many, "--train_input", f"file://{tmp_path}/many/part-9.jsonl"])


def test_remote_files_are_fetched_when_their_turn_comes(many, read, tmp_path):
    train.main([*many, "--outdir", str(tmp_path / "local")])
    local = list(read)
    read.clear()
    train.main([*many, "--train_input", f"file://{tmp_path}/many/part-*.jsonl"])
    assert read == local
    assert (tmp_path / "run" / "log.json").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--max_steps", "5", "--train_input", "org/name:train"], "org/name:train: no such file"),
        (["--max_steps", "5", "--train_input", "nowhere://x/*.jsonl"], "cannot be read"),
        ([], "expected --max_steps, too"),
    ],
)
def test_what_cannot_be_is_refused(more, told, arguments):
    with pytest.raises((RunError, train.DataError), match=told):
        train.main([*arguments, "--files_per_epoch", "2", *more])
