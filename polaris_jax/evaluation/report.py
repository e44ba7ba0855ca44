"""What people look at: the table of an evaluation, and several evaluations side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.markup import escape
from rich.table import Table

from polaris_jax.errors import UserError
from polaris_jax.evaluation.scores import estimate
from polaris_jax.rewards.verdict import Reason

NO_THINK = (
    "no response has </think>, so that all count as wrong; where the model does not think, set "
    "--config.reward.require_think=no"
)
Scores = Mapping[str, Mapping[str, Any]]

_COLUMNS = ["run", "benchmark", "problems", "samples", "mean", "low", "high", "pass@k", "maj@k", "length", "no_box"]
_COLUMNS += ["cut_off", "gain", "gain_low", "gain_high"]


_ON_BAR = dict(textcoords="offset points", ha="center", va="bottom", fontsize=8)
_LEGEND = "below each accuracy: gain over {}, on the same problems"


def table(scores: Scores, title: str = "") -> Table:
    """One row a benchmark with n problems and k responses to each; accuracies and shares in percent."""
    result = Table(title=escape(title), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    result.add_column("benchmark", overflow="fold")  # the one that gives way in 80 columns
    for name in ("n", "k", "avg@k", "95%", "pass@k", "maj@k", "tokens", "no box", "trunc"):
        result.add_column(name, justify="right", no_wrap=True)
    for benchmark, found in scores.items():
        k = found["samples"]
        average = found[f"avg@{k}"]
        result.add_row(
            escape(benchmark.rpartition("/")[2] or benchmark),
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


def warnings(scores: Scores, max_response_tokens: int) -> Iterator[str]:
    """A line for each benchmark where no response ends its thoughts, or more than half were truncated at the limit."""
    for benchmark, found in scores.items():
        if found["reasons"].get(Reason.NO_THINK_END) == 1:
            yield f"{benchmark}: {NO_THINK}"
        if (found["cut_off"] or 0) > 0.5:
            yield (
                f"{benchmark}: {found['cut_off']:.0%} of the responses were truncated at "
                f"config.evaluation.max_response_tokens={max_response_tokens}; a higher limit lets them end"
            )


def explained(scores: Scores) -> Iterator[str]:
    """For each benchmark with responses that gave no answer: how many never ended their thoughts, or had no box."""
    for benchmark, found in scores.items():
        if found["no_box"]:
            shares = {"no </think>": Reason.NO_THINK_END, "no box after the thoughts": Reason.NO_BOX}
            parts = [f"{found['reasons'].get(reason, 0):.1%} {words}" for words, reason in shares.items()]
            yield f"{benchmark}: {', '.join(parts)}"


def load_runs(directories: Sequence[str | Path]) -> dict[str, Scores]:
    """The scores in the scores.json of each directory, by the directory's name. Raises UserError."""
    runs: dict[str, Scores] = {}
    for directory in map(Path, directories):
        path = directory / "scores.json" if directory.is_dir() else directory
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["scores"]
            compare({"": found})  # what cannot be laid beside others is none
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not the scores of an evaluation ({error})") from error
        runs[directory.name if directory.name not in runs else str(directory)] = found
    return runs


def compare(runs: Mapping[str, Scores]) -> pd.DataFrame:
    """One row for each run and benchmark: run, benchmark, problems, samples, and mean, low and high of avg@K; pass@K,
    maj@K, length, no_box and cut_off; and the gain over the first run that has the benchmark, gain_low and gain_high.

    The gain is the mean difference of avg@K over the problems of both, with its 95% interval: since the same problems
    are hard for both, it is narrower than those of the two means would suggest. Unknown values are NaN.
    """
    rows = []
    for run, scores in runs.items():
        for benchmark, found in scores.items():
            k = found["samples"]
            first = next(other for other in runs.values() if benchmark in other)
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
                    **({} if first is scores else _gain(first[benchmark]["accuracies"], found["accuracies"])),
                }
            )
    frame = pd.DataFrame(rows).reindex(columns=_COLUMNS)
    return frame.astype({name: float for name in _COLUMNS[2:]})


def comparison_table(frame: pd.DataFrame) -> Table:
    """One row for each benchmark and run: avg@K and the gain over the first run in percent, with 95% intervals."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("benchmark", "run"):
        result.add_column(name, no_wrap=True)
    for name in ("avg@k", "gain", "maj@k", "tokens"):
        result.add_column(name, justify="right")
    for benchmark in dict.fromkeys(frame["benchmark"]):
        rows = frame[frame["benchmark"] == benchmark]
        for number, row in enumerate(rows.to_dict("records")):
            result.add_row(
                "" if number else escape(benchmark),
                escape(row["run"]),
                _interval(row["mean"], row["low"], row["high"]),
                "" if np.isnan(row["gain"]) else _interval(row["gain"], row["gain_low"], row["gain_high"], "+.1f"),
                _percent(row["maj@k"]),
                "?" if np.isnan(row["length"]) else f"{row['length']:,.0f}",
            )
    return result


def comparison_picture(frame: pd.DataFrame) -> Figure:
    """avg@K and mean length of each run on each benchmark, as bars with 95% intervals of avg@K.

    On each bar its number and, below it, the paired gain over the first run with its interval.
    """
    benchmarks, runs = list(dict.fromkeys(frame["benchmark"])), list(dict.fromkeys(frame["run"]))
    figure = Figure(figsize=(max(6.0, 1.6 + 0.9 * len(benchmarks) * (len(runs) + 1)), 6.5), layout="constrained")
    accuracy, length = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    width = 0.8 / len(runs)
    for number, run in enumerate(runs):
        found = frame[frame["run"] == run].set_index("benchmark").reindex(benchmarks)
        places = np.arange(len(benchmarks)) + (number - (len(runs) - 1) / 2) * width
        errors = 100 * np.stack([found["mean"] - found["low"], found["high"] - found["mean"]])
        accuracy.bar(places, 100 * found["mean"], width, label=run)
        accuracy.errorbar(places, 100 * found["mean"], errors, fmt="none", ecolor="black", elinewidth=1, capsize=3)
        for place, row in zip(places, found.to_dict("records"), strict=True):
            if not np.isnan(row["mean"]):
                top = 100 * (row["mean"] if np.isnan(row["high"]) else row["high"])
                accuracy.annotate(_on_bar(row), (place, top), (0, 4), **_ON_BAR)
        bars = length.bar(places, found["length"], width)
        length.bar_label(bars, ["" if np.isnan(n) else f"{n:,.0f}" for n in found["length"]], fontsize=8)
    accuracy.set(ylabel="accuracy (avg@k), %", ylim=(0, 118), yticks=range(0, 101, 20))
    figure.legend(loc="outside upper center", ncols=min(len(runs), 4), frameon=False, title=_LEGEND.format(runs[0]))
    length.set(ylabel="mean length, tokens", xticks=range(len(benchmarks)), xticklabels=benchmarks)
    length.margins(y=0.15)
    for axes in (accuracy, length):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_comparison(frame: pd.DataFrame, output: str | Path) -> None:
    """Writes comparison.json, the rows of `compare`, and comparison.png into a directory."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    frame.to_json(output / "comparison.json", orient="records", indent=2)
    comparison_picture(frame).savefig(output / "comparison.png", dpi=120)


def _gain(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    shared = [after[problem] - before[problem] for problem in after if problem in before]
    if not shared:
        return {}
    return dict(zip(_COLUMNS[-3:], estimate(np.array(shared), bounds=(-1.0, 1.0)), strict=True))


def _on_bar(row: Mapping[str, float]) -> str:
    gain = "" if np.isnan(row["gain"]) else f"\n{100 * row['gain']:+.1f}"
    half = (row["gain_high"] - row["gain_low"]) / 2
    return _percent(row["mean"]) + gain + (f" ± {100 * half:.1f}" if gain and not np.isnan(half) else "")


def _percent(share: float | None, form: str = ".1f") -> str:
    return "?" if share is None else f"{100 * share:{form}}"


def _interval(mean: float, low: float, high: float, form: str = ".1f") -> str:
    interval = "" if np.isnan(low) else f" ({_percent(low, form)} to {_percent(high, form)})"
    return _percent(mean, form) + interval
