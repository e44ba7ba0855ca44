"""What people look at: the table of an evaluation, and several evaluations side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from polaris_jax.errors import UserError

Scores = Mapping[str, Mapping[str, Any]]


def table(scores: Scores, title: str = "") -> Table:
    """One row a benchmark with n problems and k responses to each; accuracies and shares in percent."""
    result = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    result.add_column("benchmark", no_wrap=True)
    for name in ("n", "k", "avg@k", "95%", "pass@k", "maj@k", "tokens", "no box", "cut off"):
        result.add_column(name, justify="right")
    for benchmark, found in scores.items():
        k = found["samples"]
        average = found[f"avg@{k}"]
        result.add_row(
            benchmark,
            str(found["problems"]),
            str(k),
            _percent(average["mean"]),
            "?" if average["low"] is None else f"{_percent(average['low'])}-{_percent(average['high'])}",
            _percent(found[f"pass@{k}"]["mean"]),
            _percent(found[f"maj@{k}"]["mean"]),
            "?" if found["length"] is None else f"{found['length']['mean']:,.0f}",
            _percent(found["no_box"]),
            _percent(found["cut_off"]),
        )
    return result


def load_runs(directories: Sequence[str | Path]) -> dict[str, Scores]:
    """The scores in the scores.json of each directory, by the directory's name. Raises UserError."""
    runs: dict[str, Scores] = {}
    for directory in map(Path, directories):
        path = directory / "scores.json" if directory.is_dir() else directory
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["scores"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not the scores of an evaluation ({error})") from error
        runs[directory.name if directory.name not in runs else str(directory)] = found
    return runs


def compare(runs: Mapping[str, Scores]) -> pd.DataFrame:
    """One row for each run and benchmark: run, benchmark, problems, samples, and mean, low and high of avg@K; pass@K,
    maj@K, length, no_box and cut_off. Unknown values are NaN."""
    rows = []
    for run, scores in runs.items():
        for benchmark, found in scores.items():
            k = found["samples"]
            rows.append(
                {
                    "run": run,
                    "benchmark": benchmark,
                    "problems": found["problems"],
                    "samples": k,
                    **found[f"avg@{k}"],
                    "pass@k": found[f"pass@{k}"]["mean"],
                    "maj@k": found[f"maj@{k}"]["mean"],
                    "length": None if found["length"] is None else found["length"]["mean"],
                    "no_box": found["no_box"],
                    "cut_off": found["cut_off"],
                }
            )
    frame = pd.DataFrame(rows)
    numbers = frame.columns.difference(["run", "benchmark"], sort=False)
    return frame.astype({name: float for name in numbers})


def comparison_table(frame: pd.DataFrame) -> Table:
    """One row a benchmark, one column a run: avg@K in percent, with its 95% interval."""
    result = Table("benchmark", title="avg@k, 95% interval", box=box.SIMPLE_HEAD)
    runs = list(dict.fromkeys(frame["run"]))
    for run in runs:
        result.add_column(run, justify="right")
    for benchmark in dict.fromkeys(frame["benchmark"]):
        cells = []
        for run in runs:
            found = frame[(frame["run"] == run) & (frame["benchmark"] == benchmark)]
            cells.append("-" if found.empty else _interval(found.iloc[0]))
        result.add_row(benchmark, *cells)
    return result


def comparison_picture(frame: pd.DataFrame) -> Figure:
    """avg@K and mean length of each run on each benchmark, as bars with 95% intervals of avg@K."""
    benchmarks, runs = list(dict.fromkeys(frame["benchmark"])), list(dict.fromkeys(frame["run"]))
    figure = Figure(figsize=(max(6.0, 1.6 + 0.5 * len(benchmarks) * (len(runs) + 1)), 6.5), layout="constrained")
    accuracy, length = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    width = 0.8 / len(runs)
    for number, run in enumerate(runs):
        found = frame[frame["run"] == run].set_index("benchmark").reindex(benchmarks)
        places = np.arange(len(benchmarks)) + (number - (len(runs) - 1) / 2) * width
        errors = 100 * np.stack([found["mean"] - found["low"], found["high"] - found["mean"]])
        accuracy.bar(places, 100 * found["mean"], width, label=run)
        accuracy.errorbar(places, 100 * found["mean"], errors, fmt="none", ecolor="black", elinewidth=1, capsize=3)
        length.bar(places, found["length"], width)
    accuracy.set(ylabel="avg@k, %", ylim=(0, 100))
    accuracy.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=min(len(runs), 4), frameon=False)
    length.set(ylabel="mean length, tokens", xticks=range(len(benchmarks)), xticklabels=benchmarks)
    for axes in (accuracy, length):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_comparison(frame: pd.DataFrame, output: str | Path) -> None:
    """Writes comparison.json, the rows of `compare`, and comparison.png into a directory."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    frame.to_json(output / "comparison.json", orient="records", indent=2)
    comparison_picture(frame).savefig(output / "comparison.png", dpi=120)


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.1f}"


def _interval(row: pd.Series) -> str:
    if np.isnan(row["low"]):
        return _percent(row["mean"])
    return f"{_percent(row['mean'])} ({_percent(row['low'])}-{_percent(row['high'])})"
