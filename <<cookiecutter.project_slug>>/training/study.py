"""Store the trials of sweep.py in an SQLite file of Optuna, and yield the trials to train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import RunError

from .search_space import grid

if TYPE_CHECKING:  # optuna is an optional dependency: see pyproject.toml
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STUDY_FILE = "study.db"


class Study:
    """An Optuna study that continues after an interruption.

    Args:
        outdir: Folder of study.db.
        about: Settings that must not change when the study continues, by name.
        space: Distribution of the values of each argument, by the name of the argument.
        count: Number of trials; None for all combinations of the values.

    Raises:
        RunError: study.db contains a study with other settings, or `count` is None and an argument
            has a range of values.
    """

    def __init__(
        self,
        outdir: Path,
        about: dict[str, Any],
        space: dict[str, BaseDistribution],
        count: int | None,
    ):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._states = optuna.trial.TrialState
        self._sampler = optuna.samplers.TPESampler
        self._space = space
        combinations = list(grid(space)) if count is None else []
        self._study = optuna.create_study(
            storage=f"sqlite:///{outdir / STUDY_FILE}",
            study_name="sweep",
            direction=about["direction"],
            load_if_exists=True,
        )
        before = self._study.user_attrs.get("about", about)
        for name, value in about.items():
            if before[name] != value:
                raise RunError(
                    f"{outdir}: contains a sweep with {name} {before[name]}; expected another "
                    "--outdir"
                )
        self._study.set_user_attr("about", about)
        for values in combinations:
            self._study.enqueue_trial(values, skip_if_exists=True)
        self._count = count or len(combinations)

    def to_train(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and values of each trial to train; an interrupted trial comes first."""
        for trial in self._with_state(self._states.RUNNING):
            yield trial.number, trial.params
        while (started := self._started()) < self._count:
            # Since the index of the trial is the seed, an interruption does not change the values.
            self._study.sampler = self._sampler(seed=started)
            new = self._study.ask(self._space)
            yield new.number, new.params

    def record(self, number: int, value: float | None) -> None:
        """Save the value of a trial; `value` is None if the trial failed."""
        state = self._states.FAIL if value is None else None
        self._study.tell(number, value, state=state)

    def finished(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the number and values of each trial that finished without failure."""
        return [(trial.number, trial.params) for trial in self._with_state(self._states.COMPLETE)]

    def failed(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the number and values of each trial that failed."""
        return [(trial.number, trial.params) for trial in self._with_state(self._states.FAIL)]

    def _started(self) -> int:
        return len(self._study.trials) - len(self._with_state(self._states.WAITING))

    def _with_state(self, state: Any) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=[state])
