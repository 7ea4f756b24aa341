"""A resumed run uses, ignores or refuses changed data, arguments and paths."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest

import train
from errors import RunError
from helpers import seams
from helpers.assertions import assert_equal_tensors, read_log, read_state, read_weights
from helpers.seams import Killed
from model.dataset import generate_dataset
from training import atomic
from training.arguments import read_config
from training.contract import Task
from training.state import STATE_FILE

pytestmark = pytest.mark.proof


@pytest.fixture
def own_arguments(arguments, sample, tmp_path) -> list[str]:
    """Arguments of a short run, with copies of the data files, which tests may change."""
    for name in ("train", "valid"):
        shutil.copy(sample / f"{name}.jsonl", tmp_path)
        arguments += [f"--{name}_input", str(tmp_path / f"{name}.jsonl")]
    return arguments


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(lines), encoding="utf-8")


def stop_within_epoch(arguments: list[str]) -> None:
    with seams.killed_before_micro_batch(2), pytest.raises(Killed):
        train.main([*arguments, "--save_steps", "1"])


def outcome(run: Path) -> list[bytes]:
    """Return the contents of all files in a folder, to check that nothing was written."""
    return [path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("change", ["fewer rows", "another row"])
def test_changed_rows_within_an_epoch_are_refused(change, own_arguments, tmp_path):
    stop_within_epoch(own_arguments)
    before = outcome(tmp_path / "run")
    file = tmp_path / "train.jsonl"
    lines = lines_of(file)
    write(file, lines[:-2] if change == "fewer rows" else [*lines[:-1], lines[0]])
    with pytest.raises(RunError, match="train.jsonl: the data changed during epoch 0"):
        train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert outcome(tmp_path / "run") == before


def test_rows_changed_between_epochs_are_used_from_the_next_epoch(
    own_arguments, tmp_path, tokenizer
):
    train.main([*own_arguments, "--epochs", "1"])
    done = read_state(tmp_path / "run" / "last")["step"]
    file = tmp_path / "train.jsonl"
    write(file, lines_of(file)[:-11])
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "3"])
    per_epoch = math.ceil(len(generate_dataset(file, tokenizer, 48)) / 8)
    state = read_state(tmp_path / "run" / "last")
    assert state["step"] == state["total_steps"] == done + 2 * per_epoch
    assert state["current_epoch"] == 3
    assert list(state["log"]) == ["Epoch 0", "Epoch 1", "Epoch 2"]
    lr = train_lr_after(tmp_path / "run")
    assert lr == 0  # the schedule ends with the run


def train_lr_after(run: Path) -> float:
    """Return the final learning rate of a linear schedule, as a fraction of `--lr`."""
    state = read_state(run / "last")
    return 1 - state["scheduler_steps"] / state["total_steps"]


@pytest.mark.parametrize(("epochs", "expected"), [("1", 2), ("2", 2), ("3", 3)])
def test_number_of_epochs_may_change(epochs, expected, own_arguments, steps, tmp_path):
    """If the run has already completed `--epochs` or more epochs, no step is run."""
    train.main(own_arguments)
    weights = read_weights(tmp_path / "run" / "last")
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", epochs])
    state = read_state(tmp_path / "run" / "last")
    assert state["current_epoch"] == expected
    assert state["step"] == expected * steps
    again = read_weights(tmp_path / "run" / "last")
    assert all(t.equal(again[n]) for n, t in weights.items()) == (expected == 2)


def test_epochs_given_on_resume_replace_max_steps(own_arguments, steps, tmp_path, capsys):
    train.main([*own_arguments, "--max_steps", "2"])
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "1"])
    assert "--max_steps 2 no longer applies" in capsys.readouterr().out
    state = read_state(tmp_path / "run" / "last")
    assert state["step"] == state["total_steps"] == steps
    assert state["args"]["max_steps"] is None


def test_changed_seed_is_refused_only_within_an_epoch(own_arguments, tmp_path):
    stop_within_epoch(own_arguments)
    last = ["--restore_dir", str(tmp_path / "run" / "last")]
    with pytest.raises(RunError, match="--seed 7: the order of epoch 0 depends on the seed"):
        train.main([*last, "--seed", "7"])
    train.main([*last, "--epochs", "1"])
    train.main([*last, "--epochs", "2", "--seed", "7"])
    assert read_state(tmp_path / "run" / "last")["current_epoch"] == 2


def test_extended_run_keeps_the_validation_at_its_former_end(own_arguments, tmp_path):
    with seams.scores_replaced_by([{"loss": 0.0}]):
        train.main([*own_arguments, "--max_steps", "2"])
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "1"])
    log = read_log(tmp_path / "run")
    assert list(log) == ["Epoch 0, step 2", "Epoch 0"]
    assert log["Epoch 0, step 2"]["valid_log"]["loss"] == 0
    assert read_state(tmp_path / "run" / "last")["best"]["epoch"] == "Epoch 0, step 2"


def test_resumed_run_does_not_hold_out_examples_that_it_has_trained_on(own_arguments, tmp_path):
    while "--valid_input" in own_arguments:
        position = own_arguments.index("--valid_input")
        del own_arguments[position : position + 2]
    train.main([*own_arguments, "--valid_size", "0.3", "--epochs", "1"])
    last = ["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "2"]
    for name, value in (("seed", 7), ("valid_size", 0.4), ("valid_fold", 1), ("max_len", 47)):
        with pytest.raises(RunError, match=f"--{name} {value}: .* would now be held out"):
            train.main([*last, f"--{name}", str(value)])
    with pytest.raises(RunError, match="--valid_size 0.3: nothing is held out"):
        train.main([*last, "--valid_size", "0.3", "--valid_input", str(tmp_path / "valid.jsonl")])


def test_base_model_of_a_resumed_run_cannot_be_replaced(own_arguments, tmp_path, capsys):
    train.main([*own_arguments, "--epochs", "1"])
    last = ["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "2"]
    train.main([*last, "--model_id", "somebody/other"])
    assert "--model_id somebody/other is not used" in capsys.readouterr().out
    assert "other" not in read_state(tmp_path / "run" / "last")["args"]["model_id"]


def test_arguments_of_another_project_in_a_checkpoint_are_reported(own_arguments, tmp_path):
    train.main([*own_arguments, "--epochs", "1"])
    last = (tmp_path / "run" / "last").resolve()
    state = json.loads((last / STATE_FILE).read_text(encoding="utf-8"))
    state["args"]["other_option"] = 1
    (last / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    atomic._seal(last)
    _, notes = read_config(Task(), ["--restore_dir", str(tmp_path / "run" / "last")])
    assert notes == [f"{tmp_path}/run/last has arguments that train.py does not have: other_option"]


def test_changed_batch_size_keeps_the_global_batch_size(own_arguments, tmp_path, capsys):
    stop_within_epoch(own_arguments)
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--batch_size", "3"])
    assert "the global batch size stays 8, as when the run started" in capsys.readouterr().out
    state = read_state(tmp_path / "run" / "last")
    assert state["global_batch_size"] == 8
    assert state["current_epoch"] == 2


def test_next_validation_is_the_best_after_changed_validation_data(own_arguments, tmp_path, capsys):
    with seams.scores_replaced_by([{"loss": 0.0}]):
        train.main([*own_arguments, "--epochs", "1"])
    file = tmp_path / "valid.jsonl"
    write(file, lines_of(file)[:-4])
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "2"])
    assert "the validation data changed: the next validation counts" in capsys.readouterr().out
    best = read_state(tmp_path / "run" / "best")
    assert best["current_epoch"] == 2
    assert best["best"]["epoch"] == "Epoch 1"


def test_changed_validation_data_reset_the_count_of_patience(own_arguments, tmp_path):
    own_arguments += ["--patience", "1"]
    with seams.scores_replaced_by([{"loss": 1.0}, {"loss": 2.0}]):
        train.main([*own_arguments, "--epochs", "9"])
    file = tmp_path / "valid.jsonl"
    write(file, lines_of(file)[:-4])
    with seams.scores_replaced_by([{"loss": 3.0}, {"loss": 4.0}]):
        train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert list(read_log(tmp_path / "run")) == [f"Epoch {n}" for n in range(4)]
    assert read_state(tmp_path / "run" / "best")["best"]["epoch"] == "Epoch 2"


@pytest.mark.parametrize("path", ["link", "target", "relative link"])
def test_resumed_run_saves_into_its_folder_for_any_path(path, own_arguments, tmp_path, monkeypatch):
    train.main([*own_arguments, "--epochs", "1"])
    given = tmp_path / "shortcut"
    if path == "target":
        given = (tmp_path / "run" / "last").resolve()
    elif path == "link":
        given.symlink_to(tmp_path / "run" / "last")
    else:
        given.symlink_to(os.path.join("run", "last"))
        monkeypatch.chdir(tmp_path)
        given = Path("shortcut")
    train.main(["--restore_dir", str(given), "--epochs", "2"])
    assert read_state(tmp_path / "run" / "last")["current_epoch"] == 2
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["run"] or path != "target"


def test_copy_of_last_without_best_gets_a_new_best(own_arguments, tmp_path, capsys):
    train.main([*own_arguments, "--epochs", "1"])
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "run" / "last", elsewhere / "last")
    before = outcome(tmp_path / "run")
    train.main(["--restore_dir", str(elsewhere / "last"), "--epochs", "2", "--lr", "0"])
    assert f"{elsewhere}/best does not exist: the next validation" in capsys.readouterr().out
    assert read_state(elsewhere / "last")["current_epoch"] == 2
    assert read_state(elsewhere / "best")["current_epoch"] == 2
    assert outcome(tmp_path / "run") == before


def test_resumed_run_with_another_outdir_saves_only_there(own_arguments, tmp_path):
    train.main([*own_arguments, "--epochs", "1"])
    before = outcome(tmp_path / "run")
    last = ["--restore_dir", str(tmp_path / "run" / "last"), "--outdir", str(tmp_path / "other")]
    train.main([*last, "--epochs", "2", "--lr", "0"])
    for name in ("best", "last"):
        assert read_state(tmp_path / "other" / name)["current_epoch"] == 2
    assert list(read_log(tmp_path / "other")) == ["Epoch 0", "Epoch 1"]
    assert outcome(tmp_path / "run") == before


def test_checkpoint_with_another_name_needs_an_outdir(own_arguments, tmp_path):
    train.main([*own_arguments, "--epochs", "1"])
    copied = tmp_path / "checkpoint"
    shutil.copytree(tmp_path / "run" / "last", copied)
    with pytest.raises(RunError, match="checkpoint: cannot derive the output directory"):
        train.main(["--restore_dir", str(copied), "--epochs", "2"])
    train.main(["--restore_dir", str(copied), "--epochs", "2", "--outdir", str(tmp_path / "new")])
    assert read_state(tmp_path / "new" / "last")["current_epoch"] == 2


def test_missing_links_are_restored(own_arguments, tmp_path):
    """Some tools omit symbolic links when they copy a folder."""
    with seams.scores_replaced_by([{"loss": 0.0}]):
        train.main([*own_arguments, "--epochs", "1"])
    weights = read_weights(tmp_path / "run" / "best")
    for name in ("best", "last"):
        (tmp_path / "run" / name).unlink()
    train.main([*own_arguments, "--restore_dir", "auto"])
    assert read_state(tmp_path / "run" / "last")["current_epoch"] == 2
    assert_equal_tensors(read_weights(tmp_path / "run" / "best"), weights)


def test_resuming_from_best_is_refused(own_arguments, tmp_path):
    train.main([*own_arguments, "--epochs", "1"])
    with pytest.raises(RunError, match="expected a last/, not a best/"):
        train.main(["--restore_dir", str(tmp_path / "run" / "best")])
