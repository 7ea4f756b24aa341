"""loss.png: the run at a glance."""

import io

from training.state import TrainingState


def draw_curves(state: TrainingState) -> bytes:
    """Draw, over the steps, losses, the score that best/ is chosen by, and learning rate; a PNG."""
    from matplotlib.figure import Figure  # takes a second: not at every start
    from matplotlib.ticker import MaxNLocator

    metric = state.args["metric_for_best_model"]
    entries = list(state.log.values())
    at = [entry["step"] for entry in entries]
    figure = Figure(figsize=(9, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, losses, rates = zip(*state.curve, strict=True) if state.curve else ((), (), ())
    left.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, label="train, single steps")
    for part, color in (("train", "tab:blue"), ("valid", "tab:orange")):
        means = [entry[f"{part}_log"]["loss"] for entry in entries]
        left.plot(at, means, color=color, marker="o", label=f"{part}, mean")
    left.set(title="loss", xlabel="step")
    right.set(xlabel="step")
    if metric != "loss":
        values = [entry["valid_log"].get(metric, float("nan")) for entry in entries]
        right.plot(at, values, color="tab:green", marker="o", label=f"valid, {metric}")
        right.set_title(f"{metric} and learning rate")
        rate = right.twinx()
    else:
        right.set_title("learning rate")
        rate = right
    rate.plot(steps, rates, color="tab:gray", linestyle="--", label="learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    if state.best:
        best = state.log[state.best["epoch"]]["step"]
        left.axvline(best, color="tab:green", linestyle=":", label="best/")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top"]].set_visible(False)
    left.legend()
    lines = [*right.get_lines(), *(rate.get_lines() if rate is not right else [])]
    right.legend(handles=lines)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
