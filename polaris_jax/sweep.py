"""Sweeps: a grid of config values times seeds, each run kept by the hash of its config, and curves with seed bands."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from scipy.stats import t as student_t

from polaris_jax import config as configs
from polaris_jax.files import staged
from polaris_jax.runs.compilation import enable_compilation_cache
from polaris_jax.training import loop
from polaris_jax.training.pictures import describe

KEPT = "history.parquet"  # in a run's directory, once it is complete


def sweep(
    base: ConfigDict,
    values: Mapping[str, Sequence[Any]],
    seeds: int = 3,
    *,
    workdir: str | Path = "runs/sweep",
    processes: int = 1,
) -> pd.DataFrame:
    """Trains every combination of the values with seeds base.seed, base.seed + 1, ..., and returns all their metrics.

    One row for each run and step: the swept keys, `seed`, `run`, `step`, and the metrics. A run lies in WORKDIR/RUN,
    where RUN is a hash of its whole config: one that is there is read, one that was stopped resumes. (The hash knows
    the path in `config.model.path`, not what lies there.) processes: how many runs at once, each in a spawned process
    with its share of the cores; on accelerators leave it at 1, since one process takes the device. Raises UserError at
    the first combination that is no valid config, before anything runs.
    """
    points = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
    points = [point | {"seed": base.seed + seed} for point in points for seed in range(seeds)]
    return _trained([configs.override(base, point) for point in points], points, workdir, processes)


def compare(
    base: ConfigDict,
    variants: Mapping[str, Mapping[str, Any]],
    seeds: int = 3,
    *,
    workdir: str | Path = "runs/sweep",
    processes: int = 1,
) -> pd.DataFrame:
    """Trains each variant, a name and the keys that it changes, with seeds base.seed, base.seed + 1, ...

    One row for each run and step: `variant`, `seed`, `run`, `step`, and the metrics. Of each seed all variants come
    before the next seed, so that what is stopped early can be compared. All else is as in `sweep`.
    """
    points = [{"variant": name, "seed": base.seed + seed} for seed in range(seeds) for name in variants]
    runs = [configs.override(base, {**variants[point["variant"]], "seed": point["seed"]}) for point in points]
    return _trained(runs, points, workdir, processes)


def _trained(
    runs: Sequence[ConfigDict], points: Sequence[Mapping[str, Any]], workdir: str | Path, processes: int
) -> pd.DataFrame:
    """The metrics of all runs in one table, with the columns that `points` names for each of them in front."""
    workdir = Path(workdir).absolute()
    directories = [workdir / config_hash(run) for run in runs]
    cache = jax.config.jax_compilation_cache_dir or str(workdir / "compilation_cache")
    if processes == 1 or all(map(_is_kept, directories)):
        enable_compilation_cache(cache)
        frames = list(map(cached_run, runs, directories))
    else:
        spawn = multiprocessing.get_context("spawn")
        shares = spawn.Queue()
        for share in shares_of_cores(processes):
            shares.put(share)
        with ProcessPoolExecutor(processes, spawn, initializer=_start_worker, initargs=(shares, cache)) as pool:
            frames = list(pool.map(cached_run, runs, directories))
    tables = []
    for frame, point, directory in zip(frames, points, directories, strict=True):
        columns = {**point, "run": directory.name}
        named = {key: [tuple(v) if isinstance(v, list) else v] * len(frame) for key, v in columns.items()}
        tables.append(pd.concat([pd.DataFrame(named), frame.reset_index()], axis=1))
    return pd.concat(tables, ignore_index=True)


def cached_run(config: ConfigDict, directory: Path) -> pd.DataFrame:
    """The metrics of a run by step: those kept in its directory, else the run's, which are kept there at its end."""
    if not _is_kept(directory):
        frame = loop.run(config, directory).frame()
        with staged(directory / KEPT) as path:
            frame.to_parquet(path)
    return pd.read_parquet(directory / KEPT)


def _is_kept(directory: Path) -> bool:
    return (directory / KEPT).exists()


def config_hash(config: ConfigDict) -> str:
    """Sixteen hexadecimal digits that stand for every key and value of the config."""
    text = json.dumps(sorted(configs.flatten(config)), default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def curves(
    frame: pd.DataFrame,
    by: str | Sequence[str],
    metrics: Sequence[str] = ("reward", "response_length"),
    smooth: int = 1,
) -> Figure:
    """One panel a metric over the steps: for each value of the swept keys `by` the mean over seeds, in a band from the
    lowest seed to the highest. Values of other swept keys are taken together. smooth: steps of a running mean.

    The legends have the numbers at the end (`outcomes`): the mean over runs, and the gain over the first value.
    """
    by = [by] if isinstance(by, str) else list(by)
    figure = Figure(figsize=(5 * len(metrics), 4.2), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        ends = outcomes(frame, by, metric, smooth)
        for value, rows in frame.groupby(by, sort=False):
            by_run = rows.pivot(index="step", columns="run", values=metric).rolling(smooth, min_periods=1).mean()
            label = ", ".join(f"{key.rpartition('.')[-1]} {part}" for key, part in zip(by, value, strict=True))
            (line,) = axis.plot(by_run.index, by_run.mean(axis=1), label=f"{label}: {ends[value]}")
            band = by_run.min(axis=1), by_run.max(axis=1)
            axis.fill_between(by_run.index, *band, color=line.get_color(), alpha=0.2, linewidth=0)
        describe(axis, metric)
        of = f", mean of {smooth} steps" if smooth > 1 else ""
        axis.legend(title=f"at the end{of}", loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=8)
    return figure


def outcomes(frame: pd.DataFrame, by: Sequence[str], metric: str, smooth: int = 1) -> dict[tuple[Any, ...], str]:
    """For each value of the swept keys `by` a metric over the last `smooth` steps, in words: the mean over the runs,
    and the gain over the first value with its 95% interval.

    The gain is over pairs of runs that differ in `by` alone, such as those of one seed, so that what a seed does to
    both does not blur it; Student's t over the pairs. One pair has no interval: "?".
    """
    keys = [key for key in frame.columns[: list(frame.columns).index("run")] if key not in by]
    last = frame[frame.step > frame.step.max() - smooth].groupby([*by, *keys], sort=False)[metric].mean()
    values = dict.fromkeys(value[: len(by)] for value in last.index)
    ends = {value: last[[name[: len(by)] == value for name in last.index]].droplevel(list(by)) for value in values}
    first, words = next(iter(ends.values())), {}
    for value, end in ends.items():
        words[value] = f"{end.mean():.3g}"
        if end is not first and len(gains := (end - first).dropna()):
            half = margin(gains)
            words[value] += f", {gains.mean():+.2g} ± {'?' if np.isnan(half) else f'{round(half, 12):.2g}'}"
    return words


def margin(gains: pd.Series) -> float:
    """Half the width of the mean's 95% interval, by Student's t; NaN of fewer than two."""
    return float(student_t.ppf(0.975, len(gains) - 1) * gains.sem()) if len(gains) > 1 else float("nan")


def shares_of_cores(processes: int) -> list[set[int]]:
    """This process's cores dealt out to `processes`; where there are fewer cores, several share one."""
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[i::processes]) or {cores[i % len(cores)]} for i in range(processes)]


def _start_worker(shares: Queue, cache: str) -> None:
    os.sched_setaffinity(0, shares.get())  # before JAX starts, which makes a thread for each core it may use
    enable_compilation_cache(cache)
