"""Assignments with which mypy checks that model/ has the types of model/interface.py.

No test imports this file. For a part that model/ does not have, mypy checks nothing.
"""
# mypy: disable-error-code="attr-defined, import-not-found"

from collections.abc import Callable

from model.dataset import generate_dataset
from model.interface import (
    OptimizerBuilder,
    Output,
    SchedulerBuilder,
    Scorer,
    TaskDataset,
    TaskPredictor,
)
from model.metrics import Scores
from model.modeling import Model
from model.optimization import build_optimizer, build_scheduler
from model.prediction import Predictor

FORWARD: Callable[..., Output] = Model.forward
GENERATE_DATASET: Callable[..., TaskDataset] = generate_dataset
SCORES: Callable[..., Scorer] = Scores
DIRECTIONS: Callable[..., dict[str, bool]] = Scores.directions
PREDICTOR: Callable[..., TaskPredictor] = Predictor
BUILD_OPTIMIZER: OptimizerBuilder = build_optimizer
BUILD_SCHEDULER: SchedulerBuilder = build_scheduler
