"""What a run tells: metrics.jsonl, loggers, sample responses, a progress bar, and the `History` it returns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import logging
from matplotlib.figure import Figure
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from polaris_jax.errors import UserError
from polaris_jax.evaluation.report import NO_THINK
from polaris_jax.files import open_steps, read_steps
from polaris_jax.loggers import LOGGERS, Logger
from polaris_jax.rewards import Reason
from polaris_jax.rewards.functions import VERIFY
from polaris_jax.rewards.total import Part
from polaris_jax.rl.temperature import diversity
from polaris_jax.sharding import multihost
from polaris_jax.supervision import heartbeat
from polaris_jax.supervision.progress import STEPS, show_metrics
from polaris_jax.training.pictures import OVERVIEW, training_picture
from polaris_jax.types import Group

PERCENTILES = (10, 50, 90, 99)
BINS = 16  # of the histogram of lengths


@dataclass(frozen=True)
class History:
    """The metrics of a run, one mapping a step, resumed steps included. workdir: where the run's files are."""

    rows: tuple[Mapping[str, float], ...]
    workdir: Path

    def frame(self) -> pd.DataFrame:
        """The metrics as a table indexed by step."""
        return pd.DataFrame(list(self.rows)).set_index("step")

    def plot(self, names: Sequence[str] = OVERVIEW) -> Figure:
        """One panel a metric over the steps (`training_picture`)."""
        return training_picture(self.frame(), names)


def group_metrics(groups: Sequence[Group], texts: Sequence[Sequence[str]], limit: int) -> dict[str, float]:
    """What a step's groups, as they were sampled, say of the model.

    Reward, and the share that is right; both by source too; response length in tokens (mean, percentiles, longest), its
    histogram (how many responses end in the k-th of `BINS` equal parts of `limit`, the most tokens that one may have)
    and share truncated; diversity of the responses, whose texts are given group by group; how many groups are all
    right, all wrong and mixed, and the histogram of pass rates: how many groups have k of their n samples right.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths, samples = [len(rollout.tokens) for rollout in rollouts], len(groups[0].rollouts)
    parts = Counter(max(1, math.ceil(BINS * length / limit)) for length in lengths)
    right = Counter(int(group.correct.sum()) for group in groups)
    return {
        "reward": float(np.mean([group.rewards for group in groups])),
        "accuracy": float(np.mean([group.correct for group in groups])),
        **_by_source(groups),
        "response_length": float(np.mean(lengths)),
        **{f"response_length/p{q}": float(np.percentile(lengths, q)) for q in PERCENTILES},
        "response_length/max": max(lengths),
        **{f"response_length/part_{k}_of_{BINS}": parts[k] for k in range(1, BINS + 1)},
        "cut_off": float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
        "diversity": diversity(texts),
        "groups/all_right": right[samples],
        "groups/all_wrong": right[0],
        "groups/mixed": len(groups) - right[samples] - right[0],
        **{f"pass_rate/{k}_of_{samples}": right[k] for k in range(samples + 1)},
    }


def reward_metrics(parts: Sequence[Mapping[str, Part]]) -> dict[str, float]:
    """Of each reward function, without its weight, the mean over a step and on how many responses it failed.

    parts: of each group. The first failure is logged, for the first steps that have one.
    """
    metrics: dict[str, float] = {}
    for name in parts[0]:
        errors = [error for part in parts for error in part[name].errors]
        metrics[f"reward/{name}"] = float(np.mean([part[name].values for part in parts]))
        if name != VERIFY:
            metrics[f"reward/{name}_failed"] = len(errors)
        if errors:
            logging.log_first_n(logging.WARNING, "reward %s: %d failed, the first: %s", 5, name, len(errors), errors[0])
    return metrics


def _by_source(groups: Sequence[Group]) -> dict[str, float]:
    sources = sorted({group.problem.source for group in groups})
    metrics = {}
    for source in sources:
        members = [group for group in groups if group.problem.source == source]
        metrics[f"source/{source or 'unnamed'}/reward"] = float(np.mean([group.rewards for group in members]))
        metrics[f"source/{source or 'unnamed'}/accuracy"] = float(np.mean([group.correct for group in members]))
    return metrics


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; an unfinished last line is left out."""
    return read_steps(workdir / "metrics.jsonl")[0]


class MetricsLogger:
    """Writes a run's metrics and samples, and prints some of them: in one process of several. A context manager.

    workdir: the run's directory; total: steps of the run; start: the step it resumes from, later rows are dropped.
    shown: the metrics that are printed. While the disk is full, rows are kept in memory. loggers: names of `LOGGERS`,
    which are told all rows. config: the run's keys and values, for those. Raises UserError where one cannot be begun.
    """

    def __init__(
        self,
        workdir: Path,
        title: str,
        total: int,
        start: int,
        shown: Sequence[str],
        loggers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ):
        self._workdir, self._title, self._shown = workdir, title, shown
        self._done, self._total = start, total
        self.rows, self._metrics = open_steps(workdir / "metrics.jsonl", start)
        _, self._samples = open_steps(workdir / "samples.jsonl", start)
        if len(self.rows) != start:
            logging.warning("%s/metrics.jsonl: holds %d of the %d steps before", workdir, len(self.rows), start)
        self._full, self._warned, self._config = False, False, dict(config or {})
        self._loggers: dict[str, Logger | None] = dict.fromkeys(loggers)
        self._told = dict.fromkeys(loggers, 0)  # rows
        self._tell_loggers(UserError)
        self._console = Console(quiet=not multihost.is_writer())

    def __enter__(self) -> MetricsLogger:
        heartbeat(STEPS, self._done, self._total)
        if self._done == self._total:
            self._console.print(
                f"{self._workdir}: finished, all {self._total} steps were done before; given more steps, it resumes",
                soft_wrap=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._metrics.close()
        self._samples.close()
        for logger in filter(None, self._loggers.values()):
            with suppress(OSError):
                logger.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of a finished step, and warns of rewards that are low for another reason than answers."""
        self._warn_once(step, metrics)
        row = {"step": step, **metrics}
        self.rows.append(row)
        self._metrics.add(row)
        self._flush()
        self._tell_loggers()
        names = [*self._shown, *(name for name in metrics if name.startswith("evaluation/"))]
        shown = {name: metrics[name] for name in names if name in metrics}
        show_metrics(shown)
        heartbeat(STEPS, step, self._total)
        if step == self._total or step % max(1, self._total // 20) == 0:
            with suppress(OSError):  # of a log file on the same full disk
                text = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items())
                self._console.print(f"{self._title} {step}/{self._total}  {text}")

    def sample(self, record: Mapping[str, Any]) -> None:
        """Adds one response to samples.jsonl."""
        self._samples.add(record)
        self._flush()

    def sync(self) -> None:
        """Returns when all rows and samples are on the disk. Raises OSError where they cannot be written."""
        self._metrics.sync()
        self._samples.sync()

    def history(self) -> History:
        """All rows so far."""
        return History(tuple(self.rows), self._workdir)

    def _warn_once(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self._warned and multihost.is_writer():
            if metrics.get(f"verdict/{Reason.NO_THINK_END}") == 1:
                logging.warning("step %d: %s", step, NO_THINK)
                self._warned = True
            if metrics.get("cut_off", 0) > 0.5:
                logging.warning(
                    "step %d: %.0f%% of the responses were truncated at config.rollout.max_response_tokens; a higher "
                    "limit lets them end", step, 100 * metrics["cut_off"],
                )  # fmt: skip
                self._warned = True

    def _flush(self) -> None:
        try:
            self._metrics.flush()
            self._samples.flush()
            self._full = False
        except OSError as error:
            if not self._full:
                logging.warning("%s: metrics cannot be written: %s; kept in memory", self._workdir, error.strerror)
            self._full = True

    def _tell_loggers(self, fatal: type[Exception] | tuple[()] = ()) -> None:
        """Tells each logger the rows that it lacks. One that fails is begun anew at the next row and told all rows.
        fatal: errors of a logger that end the run."""
        if self._full or not multihost.is_writer():
            return
        for name in self._loggers:
            try:
                if self._loggers[name] is None:
                    self._loggers[name], self._told[name] = LOGGERS[name](self._workdir, self._config), 0
                for row in self.rows[self._told[name] :]:
                    self._loggers[name].write(row)
                self._told[name] = len(self.rows)
            except fatal:
                raise
            except (OSError, UserError) as error:
                logging.warning("%s: %s cannot be written: %s", self._workdir, name, error)
                self._loggers[name] = None


def log_samples(
    log: MetricsLogger, step: int, stage: str, groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes the first rollout of each group, in words, to samples.jsonl."""
    for group in groups:
        rollout = group.rollouts[0]
        log.sample(
            {
                "step": step,
                "stage": stage,
                "question": group.problem.question,
                "response": tokenizer.decode(rollout.tokens),
                "answers": list(group.problem.answers),
                "reward": float(group.rewards[0]),
                "correct": bool(group.correct[0]),
                "finish_reason": rollout.finish_reason,
            }
        )
