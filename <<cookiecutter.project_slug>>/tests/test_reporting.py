"""Scores, the choice of best/, early stopping, pictures, trackers and the model card."""

import math
import os
import re
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from conftest import ROOT
from errors import RunError
from helpers import seams
from helpers.assertions import WEIGHTS_FILE, assert_bit_identical, read_log, read_state
from helpers.failures import reporting_fails
from helpers.processes import Launch
from helpers.seams import Killed
from model.dataset import generate_dataset
from model.metrics import Scores
from reporting import report
from reporting.curves import draw_curves
from training.atomic import STORE
from training.state import MAX_POINTS, TrainState

PROOF = pytest.mark.proof
SCORES = Scores.directions(generate_dataset(ROOT / "data" / "train.jsonl").schema)


@PROOF
@pytest.mark.parametrize("name", ["loss", list(SCORES)[0], list(SCORES)[-1]])
def test_best_is_chosen_by_metric_for_best_model(name, arguments, tmp_path):
    values = [1.0, 3.0, 2.0] if {"loss": False, **SCORES}[name] else [3.0, 1.0, 2.0]
    worse = {"loss": 9.0} if name != "loss" else {}
    with seams.scores_replaced_by([{**worse, name: value} for value in values]):
        train.main([*arguments, "--epochs", "3", "--metric_for_best_model", name])
    assert read_state(tmp_path / "run" / "last")["best"]["epoch"] == "Epoch 1"
    assert read_state(tmp_path / "run" / "best")["current_epoch"] == 2


@PROOF
def test_unknown_score_is_refused(arguments, tmp_path):
    with pytest.raises(RunError, match="metric_for_best_model bleurt: no such score; expected"):
        train.main([*arguments, "--metric_for_best_model", "bleurt"])
    assert not (tmp_path / "run").exists()


@PROOF
def test_patience_counts_validations_without_a_better_score(arguments, tmp_path):
    with seams.scores_replaced_by([{"loss": loss} for loss in (2.0, 1.0, 1.0, 1.5, 0.1)]):
        train.main([*arguments, "--epochs", "9", "--patience", "2"])
    assert list(read_log(tmp_path / "run")) == [f"Epoch {n}" for n in range(4)]


@PROOF
def test_validation_inside_an_epoch_changes_no_weight(arguments, steps, tmp_path, uninterrupted):
    plain = uninterrupted(arguments)
    arguments += ["--valid_steps", "2", "--save_steps", "1"]
    whole = uninterrupted(arguments)
    within = [f"Epoch 0, step {step}" for step in range(2, steps, 2)]
    assert list(read_log(whole))[: len(within) + 1] == [*within, "Epoch 0"]
    weights = [(run / "last" / WEIGHTS_FILE).read_bytes() for run in (plain, whole)]
    assert weights[0] == weights[1]
    with seams.killed_before_micro_batch(3), pytest.raises(Killed):
        train.main(arguments)
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert_bit_identical(tmp_path / "run", whole)


@PROOF
def test_pictures_samples_and_model_card_are_written(arguments, tmp_path, capsys):
    train.main([*arguments, "--logging_steps", "1"])
    run = tmp_path / "run"
    others = set(os.listdir(run)) - {"best", "last", "log.json", "loss.png", STORE}
    assert others, "Scores.save has written no file"
    state = read_state(run / "best")
    assert [step for step, *_ in state["curve"]] == list(range(1, state["step"] + 1))
    norms = [norm for *_, norm in state["curve"]]
    entries = list(read_log(run).values())
    first = entries[0]["step"]
    assert entries[0]["grad_norm"] == pytest.approx(np.mean(norms[:first]))
    assert entries[1]["grad_norm"] == pytest.approx(np.mean(norms[first:]))
    last = SimpleNamespace(**{**read_state(run / "last"), "log": read_log(run)})
    assert (run / "loss.png").read_bytes() == draw_curves(last, "loss")  # type: ignore[arg-type]
    card = ModelCard.load(run / "best" / "README.md")
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    expected = read_log(run)[state["best"]["epoch"]]["valid_log"]
    assert scores == {name: expected[name] for name in ("loss", *SCORES)}
    assert "| max_len | 48 |" in card.text
    assert "loss.png" not in card.text, "the model card shows loss.png, which best/ lacks"
    shown = capsys.readouterr()
    for name in scores:
        assert f"{name} {expected[name]:.4g}" in shown.out
    assert re.findall(r"left=([\d:?]+)", shown.err)[-1] == "00:00", (
        "`left` is not the remaining time of the run"
    )


@PROOF
@pytest.mark.parametrize("seconds, calls", [(0, 4), (math.inf, 1)])
def test_files_of_validations_within_the_interval_are_written_once(
    seconds, calls, arguments, steps, monkeypatch
):
    monkeypatch.setattr(report, "SECONDS_BETWEEN_FILES", seconds)
    with mock.patch.object(Scores, "save", autospec=True, side_effect=Scores.save) as save:
        train.main([*arguments, "--max_steps", "4", "--valid_steps", "1"])
    assert steps > 4 and save.call_count == 1 + calls, "the first call is the check of the scores"


@PROOF
def test_resumed_run_without_further_steps_draws_the_missing_curves(arguments, tmp_path):
    train.main([*arguments, "--max_steps", "1"])
    picture = tmp_path / "run" / "loss.png"
    expected = picture.read_bytes()
    picture.unlink()  # as if the process had been killed after its last save
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert picture.read_bytes() == expected


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    found: dict[int, float] = {}
    for file in sorted(folder.rglob("events.out.tfevents*")):
        events = EventAccumulator(str(file)).Reload()
        if tag in events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars(tag)}
    return sorted(found.items())


@PROOF
def test_resumed_run_continues_its_tensorboard_logs(arguments, tmp_path):
    arguments += ["--report_to", "tensorboard", "--logging_steps", "1", "--save_steps", "3"]
    train.main([*arguments, "--outdir", str(tmp_path / "whole")])
    with seams.killed_before_micro_batch(5), pytest.raises(Killed):
        train.main(arguments)
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    whole, run = (tmp_path / name / "trackers" for name in ("whole", "run"))
    for tag in ("train/loss", "train/lr", "train/grad_norm", "valid/loss"):
        assert points(run, tag) == points(whole, tag)
    log = read_log(tmp_path / "run")
    valid = {entry["step"]: entry["valid_log"]["loss"] for entry in log.values()}
    assert dict(points(run, "valid/loss")) == pytest.approx(valid)
    assert [step for step, _ in points(run, "train/loss")] == list(range(1, max(valid) + 1))


def test_tracker_that_is_not_installed_is_refused(arguments, tmp_path):
    with pytest.raises(RunError, match="--report_to aim: not installed; expected `pip install aim"):
        train.main([*arguments, "--report_to", "aim"])
    assert not (tmp_path / "run").exists()


def test_points_of_a_long_curve_are_evenly_spaced():
    state = TrainState(8)
    for state.step in range(1, 7 * MAX_POINTS):
        state.add_curve_point(1.0, 0.1, 2.0)
    steps = [step for step, *_ in state.curve]
    assert MAX_POINTS / 2 <= len(steps) <= MAX_POINTS
    assert {later - step for step, later in zip(steps, steps[1:], strict=False)} == {8}


@PROOF
@pytest.mark.parametrize("processes", [1, 2])
def test_failures_in_reporting_do_not_end_a_run(processes, arguments, tmp_path):
    arguments += ["--report_to", "tensorboard", "--logging_steps", "1"]
    arguments += ["--batch_size", str(8 // processes)]
    output = Launch(arguments, tmp_path / "output", processes, reporting_fails).expect()
    for part in ("README.md", "loss.png", "trackers", "files of Scores.save"):
        assert output.count(f"{part}: not written (RuntimeError: broken)") == 1
    assert (tmp_path / "run" / "best" / WEIGHTS_FILE).is_file()
    assert "Best: Epoch" in output
