"""Assignments with which mypy checks that model/ has the types of model/interface.py.

No test imports this file. mypy does not check parts that model/ does not have, functions without
annotations, or functions with a decorator of torch, such as `torch.no_grad()`.
"""
# mypy: disable-error-code="attr-defined, import-not-found"

from collections.abc import Callable

from model import dataset, metrics, modeling, optimization, prediction
from model.interface import (
    OptimizerBuilder,
    Output,
    SchedulerBuilder,
    Scorer,
    TaskDataset,
    TaskPredictor,
)

FORWARD: Callable[..., Output] = modeling.Model.forward
GENERATE_DATASET: Callable[..., TaskDataset] = dataset.generate_dataset
SCORES: Callable[..., Scorer] = metrics.Scores
DIRECTIONS: Callable[..., dict[str, bool]] = metrics.Scores.directions
PREDICTOR: Callable[..., TaskPredictor] = prediction.Predictor
BUILD_OPTIMIZER: OptimizerBuilder = optimization.build_optimizer
BUILD_SCHEDULER: SchedulerBuilder = optimization.build_scheduler
