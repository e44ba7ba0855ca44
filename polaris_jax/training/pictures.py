"""A run as a picture: a panel for each metric, each with its unit, raw and smoothed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLUMNS = 3  # of panels
HELD_OUT = "held-out accuracy"  # the panel of all benchmarks that were evaluated while training
OVERVIEW = ("reward", HELD_OUT, "response_length", "update/entropy", "groups/mixed")
_ACCURACY = re.compile(r"evaluation/(.+)/avg@(\d+)")

# What the y axis says, by metric; others get their own name. Shares are drawn from 0 to 1, and counts from 0.
UNITS = {
    "reward": "mean reward",
    HELD_OUT: "accuracy (avg@k)",
    "response_length": "mean tokens of a response",
    "loss": "nats a token",
    "entropy": "nats a token",
    "groups/mixed": "groups of a step with both",
    "diversity": "distinct 4-grams / all 4-grams",
    "cut_off": "share of the responses",
    "clip_above": "share of the tokens",
    "clip_below": "share of the tokens",
    "temperature": "of sampling",
    "tokens_per_s": "tokens a second",
}
TITLES = {"groups/mixed": "mixed groups (right and wrong)", "cut_off": "truncated responses"}
SHARES = ("reward", HELD_OUT, "diversity", "cut_off")
COUNTS = ("response_length", "groups/mixed", "entropy", "loss", "tokens_per_s")


def training_picture(frame: pd.DataFrame, names: Sequence[str] = OVERVIEW) -> Figure:
    """The metrics of a run, indexed by step: a panel for each name, with a running mean over a tenth of the run.

    Names that the run does not have are left out; `HELD_OUT` stands for the accuracy on each benchmark, which only some
    steps have.
    """
    accuracies = {name: found[1] for name in frame if (found := _ACCURACY.fullmatch(name))}
    names = [name for name in names if name in frame or (name == HELD_OUT and accuracies)]
    rows, columns = -(-len(names) // COLUMNS), min(len(names), COLUMNS)
    figure = Figure(figsize=(4.4 * columns, 3.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        if name == HELD_OUT:
            for metric, benchmark in accuracies.items():
                axes.plot(frame[metric].dropna(), "o-", markersize=4, label=benchmark.rpartition("/")[2])
        else:
            steps = max(1, len(frame) // 10)
            axes.plot(frame[name], alpha=0.35, label="each step")
            if steps > 1:
                smoothed = frame[name].rolling(steps, min_periods=1).mean()
                axes.plot(smoothed, color="C0", linewidth=2, label=f"mean of {steps} steps")
        describe(axes, name)
        axes.legend(fontsize=8, frameon=False)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure


def describe(axes: Axes, metric: str) -> None:
    """Names the axes of a panel that shows a metric over the steps, and gives shares the range from 0 to 1."""
    last = metric.rpartition("/")[2]
    title = TITLES.get(metric, last if metric in UNITS or last in UNITS else metric).replace("_", " ")
    axes.set(xlabel="step", title=title, ylabel=UNITS.get(metric, UNITS.get(last, "")))
    low, high = axes.get_ylim()
    if metric in SHARES:  # a reward can lie outside: what is taken off for length, or a reward of one's own
        axes.set_ylim(0 if axes.dataLim.y0 >= 0 else low, 1.02 if axes.dataLim.y1 <= 1 else high)
    elif (metric in COUNTS or last in COUNTS) and axes.dataLim.y0 >= 0:
        axes.set_ylim(0, 1.05 * axes.dataLim.y1 or 1)
    if metric.startswith("groups/"):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
