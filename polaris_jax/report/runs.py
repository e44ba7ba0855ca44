"""What the report shows of training runs: their curves, stages and configs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from configs import base
from polaris_jax import config as configs
from polaris_jax.errors import UserError
from polaris_jax.training.metrics import read_metrics

POINTS = 600  # of each curve of all runs together; longer runs are shown by means of several steps


def find(workdirs: Sequence[str | Path], name: str) -> dict[str, Path]:
    """The directories that hold a file of that name, in `workdirs` and up to two levels below, by the shortest names
    that tell them apart: their paths below what all of them share."""
    found: list[Path] = []
    for workdir in map(Path, workdirs):
        if not workdir.is_dir():
            raise UserError(f"{workdir}: no such directory")
        paths = {p.parent.absolute() for pattern in ("", "*/", "*/*/") for p in workdir.glob(pattern + name)}
        found += sorted(paths - set(found), key=lambda path: (path / name).stat().st_mtime)
    shared = len(Path(*_common(found)).parts)
    return {str(Path(*path.parts[shared:])): path for path in found}


def _common(paths: Sequence[Path]) -> list[str]:
    """The parts that all paths begin with, less the last of the shortest."""
    common = []
    for parts in zip(*(path.parts[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return common


def run(name: str, workdir: Path, *, count: int) -> dict[str, Any]:
    """A run's curves. count: of all runs of the report, which share the points that there is room for."""
    rows = read_metrics(workdir)
    last = rows[-1]["step"] if rows else 0
    frame = pd.DataFrame(rows, dtype=float) if rows else pd.DataFrame({"step": []})
    per = max(1, int(np.ceil(len(frame) / max(POINTS // count, 60))))
    means = frame.groupby(np.arange(len(frame)) // per).mean()
    names = [stage.get("name", f"stage{i}") for i, stage in enumerate(read_config(workdir)["stages"], 1)]
    metrics = {
        column: [None if np.isnan(value) else float(f"{value:.6g}") for value in means[column]]
        for column in means
        if column not in ("step", "stage")
    }
    return {
        "name": name,
        "last": int(last),
        "every": per,
        "steps": [round(step, 1) for step in means["step"]],
        "metrics": metrics,
        "stages": _stages(frame, names),
        "limit": read_config(workdir)["rollout.max_response_tokens"],
    }


def stage_of(shown: Mapping[str, Any], step: int) -> str:
    """The name of the stage that a step belongs to, "" in a run without stages."""
    return next((stage["name"] for stage in reversed(shown["stages"]) if stage["step"] <= step), "")


def _stages(frame: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """The first step of each stage; none where there is one alone."""
    if "stage" not in frame or not names:
        return []
    first = frame.groupby("stage")["step"].min()
    return [{"name": names[int(i)] if int(i) < len(names) else str(int(i)), "step": int(first[i])} for i in first.index]


def read_config(workdir: Path) -> dict[str, Any]:
    """The flat keys of a run's config.json, with today's defaults of those that it has not."""
    try:
        found = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
        return _plain(base.get_config()) | dict(configs.flatten(ConfigDict(found)))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{workdir}/config.json: not a config: {error}") from error


def _plain(config: ConfigDict) -> dict[str, Any]:
    return dict(configs.flatten(ConfigDict(json.loads(config.to_json_best_effort()))))


def config_table(found: Mapping[str, Path]) -> list[dict[str, Any]]:
    """A row for each key: its default and its value in each run, as texts, and whether any differs from the default."""
    defaults, values = _plain(base.get_config()), [read_config(path) for path in found.values()]
    keys = dict.fromkeys([*defaults, *(key for one in values for key in one)])
    rows = []
    for key in keys if values else ():
        row = [_text(one.get(key)) for one in values]
        rows.append({"key": key, "default": _text(defaults.get(key)), "values": row})
    return rows


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
