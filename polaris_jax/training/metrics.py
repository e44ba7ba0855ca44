"""What a run tells: metrics.jsonl, tensorboard, sample responses, a progress bar, and the `History` it returns."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.summary import Writer

from polaris_jax.rl.temperature import diversity
from polaris_jax.sharding import multihost
from polaris_jax.types import Group

PERCENTILES = (10, 50, 90, 99)


@dataclass(frozen=True)
class History:
    """The metrics of a run, one mapping a step, resumed steps included. workdir: where the run's files are."""

    rows: tuple[Mapping[str, float], ...]
    workdir: Path

    def frame(self) -> pd.DataFrame:
        """The metrics as a table indexed by step."""
        return pd.DataFrame(list(self.rows)).set_index("step")

    def plot(self, names: Sequence[str] = ("reward", "response_length")) -> Figure:
        """One panel a metric over the steps, with a running mean over a tenth of the run."""
        frame = self.frame()
        figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 3.2), squeeze=False, layout="constrained")
        for axis, name in zip(axes[0], names, strict=True):
            axis.plot(frame.index, frame[name], alpha=0.3)
            axis.plot(frame.index, frame[name].rolling(max(1, len(frame) // 10), min_periods=1).mean(), color="C0")
            axis.set(xlabel="step", title=name.replace("_", " "))
            axis.grid(alpha=0.3)
        plt.close(figure)
        return figure


def group_metrics(groups: Sequence[Group], texts: Sequence[Sequence[str]]) -> dict[str, float]:
    """What a step's groups, as they were sampled, say of the model.

    Reward; response length in tokens (mean, percentiles, longest) and share cut off; diversity of the responses, whose
    texts are given group by group; how many groups are all right, all wrong and mixed, and the histogram of pass
    rates: how many groups have k of their n samples right.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths, samples = [len(rollout.tokens) for rollout in rollouts], len(groups[0].rollouts)
    right = Counter(int((group.rewards == 1).sum()) for group in groups)
    return {
        "reward": float(np.mean([group.rewards for group in groups])),
        "response_length": float(np.mean(lengths)),
        **{f"response_length/p{q}": float(np.percentile(lengths, q)) for q in PERCENTILES},
        "response_length/max": max(lengths),
        "cut_off": float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
        "diversity": diversity(texts),
        "groups/all_right": right[samples],
        "groups/all_wrong": right[0],
        "groups/mixed": len(groups) - right[samples] - right[0],
        **{f"pass_rate/{k}_of_{samples}": right[k] for k in range(samples + 1)},
    }


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; an unfinished last line is left out."""
    return _read(workdir / "metrics.jsonl")


def _read(path: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [row for row in rows if last_step is None or row["step"] <= last_step]


def _reopen(path: Path, last_step: int) -> tuple[list[dict[str, Any]], TextIO]:
    """The rows up to `last_step`, and the file without the others, open for more."""
    rows = _read(path, last_step)
    multihost.barrier(f"all have read {path}")
    if not multihost.is_writer():
        return rows, open(os.devnull, "a", encoding="utf-8")
    path.write_text("".join(_line(row) for row in rows), encoding="utf-8")
    return rows, path.open("a", encoding="utf-8")


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


class MetricsLogger:
    """Writes a run's metrics and samples, and draws its progress: in one process of several. A context manager.

    workdir: the run's directory; total: steps of the run; start: the step it resumes from, later rows are dropped.
    shown: the metrics beside the progress bar.
    """

    def __init__(self, workdir: Path, title: str, total: int, start: int, shown: Sequence[str]):
        self._workdir, self._shown = workdir, shown
        self.rows, self._metrics = _reopen(workdir / "metrics.jsonl", start)
        _, self._samples = _reopen(workdir / "samples.jsonl", start)
        self._tensorboard = Writer(str(workdir / "tensorboard")) if multihost.is_writer() else None
        self._console = Console(quiet=not multihost.is_writer())
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
        self._progress = Progress(*columns, TimeRemainingColumn(), console=self._console)
        self._task = self._progress.add_task(title, total=total, completed=start, text="")

    def __enter__(self) -> MetricsLogger:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._metrics.close()
        self._samples.close()
        if self._tensorboard:
            self._tensorboard.close()

    def phase(self, text: str) -> None:
        """Shows what the current step is doing, such as "612 of 1024 rollouts"."""
        self._progress.update(self._task, text=text)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of a finished step."""
        row = {"step": step, **metrics}
        self.rows.append(row)
        self._metrics.write(_line(row))
        self._metrics.flush()
        for name, value in metrics.items() if self._tensorboard else ():
            self._tensorboard.add_scalar(name, value, step=step)
        text = "  ".join(f"{name.replace('_', ' ')} {metrics[name]:.4g}" for name in self._shown if name in metrics)
        self._progress.update(self._task, completed=step, text=text)
        total = self._progress.tasks[0].total or step
        if not self._console.is_terminal and (step == total or step % max(1, int(total) // 20) == 0):
            self._console.print(f"{self._progress.tasks[0].description} {step}/{int(total)}  {text}")

    def sample(self, record: Mapping[str, Any]) -> None:
        """Adds one response to samples.jsonl."""
        self._samples.write(_line(record))

    def history(self) -> History:
        """All rows so far."""
        return History(tuple(self.rows), self._workdir)
