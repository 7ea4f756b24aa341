"""Draw loss.png: losses, gradient norm, `metric_for_best_model` and learning rate by step."""

import io
import math
from itertools import cycle, product

from training.state import TrainState


def draw_curves(state: TrainState, metric: str) -> bytes:
    """Return the bytes of a PNG file.

    Args:
        metric: Name of the score by which best/ is chosen.
    """
    from matplotlib.figure import Figure  # importing it takes a second
    from matplotlib.ticker import MaxNLocator

    entries = list(state.log.values())
    at = [entry["step"] for entry in entries]
    figure = Figure(figsize=(9, 5))  # an automatic layout would draw the figure twice
    figure.subplots_adjust(left=0.08, right=0.92, bottom=0.1, top=0.93)
    panels = figure.subplot_mosaic(
        [["loss", "score"], ["norm", "score"]], height_ratios=[4, 1], sharex=True
    )
    left, below, right = (panels[name] for name in ("loss", "norm", "score"))
    columns = zip(*state.curve, strict=True) if state.curve else ((), (), (), ())
    steps, losses, rates, norms = columns
    left.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, label="train, single steps")
    names = list(entries[-1]["train_log"]) if entries else []  # the loss, then further losses
    styles = zip(names, cycle(["-", "--", ":", "-."]))
    for (name, style), part in product(styles, ("train", "valid")):
        color = "tab:blue" if part == "train" else "tab:orange"
        means = [_number(entry[f"{part}_log"].get(name)) for entry in entries]
        label = f"{part}, {'mean' if name == 'loss' else name}"
        left.plot(at, means, color=color, linestyle=style, marker="o", label=label)
    left.set(title="loss")
    left.tick_params(labelbottom=False)
    below.plot(steps, [_number(norm) for norm in norms], color="tab:gray", linewidth=1)
    below.set(xlabel="step", ylabel="gradient norm", ylim=(0, None))
    right.set(xlabel="step")
    if metric != "loss":
        values = [_number(entry["valid_log"].get(metric)) for entry in entries]
        right.plot(at, values, color="tab:green", marker="o", label=f"valid, {metric}")
        right.set_title(f"{metric} and learning rate")
        rate = right.twinx()
    else:
        right.set_title("learning rate")
        rate = right
    rate.plot(steps, rates, color="tab:gray", linestyle="--", label="learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    if state.best.get("epoch") in state.log:
        best = state.log[state.best["epoch"]]["step"]
        left.axvline(best, color="tab:green", linestyle=":", label="best/")
    for axes in panels.values():
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top"]].set_visible(False)
    left.legend(loc="upper right")
    lines = [*right.get_lines(), *(rate.get_lines() if rate is not right else [])]
    right.legend(handles=lines, loc="upper center")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()


def _number(value: float | None) -> float:
    return math.nan if value is None else value
