"""Format the results of sweep.py as a table and a plot."""

import io
import math
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any


@dataclass(frozen=True)
class Trial:
    """A combination of values, trained once for each seed and fold.

    Attributes:
        number: Index of the trial, in the order in which the trials started.
        values: Values of the varied arguments, by name.
        scores: Best score of each run; empty if the trial failed.
    """

    number: int
    values: dict[str, Any]
    scores: list[float]

    @property
    def mean(self) -> float:
        return mean(self.scores)

    @property
    def spread(self) -> float:
        """Sample standard deviation over the runs; NaN for a single run."""
        return stdev(self.scores) if len(self.scores) > 1 else math.nan


def table(trials: list[Trial], failed: list[Trial], metric: str) -> str:
    """Return a Markdown table, the best trial first.

    Args:
        trials: Trials with scores, sorted from best to worst.
        failed: Trials without a score.
    """
    names = list((trials + failed)[0].values)
    header = ["trial", *names, metric, "standard deviation", "runs"]
    rows = [header, ["---"] * len(header)]
    for trial in trials:
        spread = "" if math.isnan(trial.spread) else f"{trial.spread:.4g}"
        values = [_shown(trial.values[name]) for name in names]
        scores = [f"{trial.mean:.4g}", spread, str(len(trial.scores))]
        rows.append([str(trial.number), *values, *scores])
    for trial in failed:
        values = [_shown(trial.values[name]) for name in names]
        rows.append([str(trial.number), *values, "failed", "", ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)
    return "\n".join(lines)


def draw(trials: list[Trial], metric: str) -> bytes:
    """Plot the score of each run and the mean of each trial, one panel per argument, as a PNG."""
    from matplotlib.figure import Figure  # this import takes a second

    names = list(trials[0].values) or ["trial"]
    figure = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        positions, labels = _positions([trial.values.get(name, "") for trial in trials])
        for x, trial in zip(positions, trials, strict=True):
            axes.plot([x] * len(trial.scores), trial.scores, ".", color="tab:blue", alpha=0.4)
            axes.plot(x, trial.mean, "o", color="tab:blue")
        if labels is not None:
            axes.set_xticks(range(len(labels)), labels)
        elif min(positions) > 0 and max(positions) >= 10 * min(positions):
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(metric)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _positions(values: list[Any]) -> tuple[list[float], list[str] | None]:
    """Return positions on the x-axis, and their labels if the values are not numbers."""
    try:
        return [float(value) for value in values], None
    except ValueError:
        labels = sorted({str(value) for value in values})
        return [float(labels.index(str(value))) for value in values], labels


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
