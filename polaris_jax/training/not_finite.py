"""Batches whose update was skipped because something was not finite, kept on disk for `replay.py`.

WORKDIR/not_finite/STEP.npz   the batch that the update behind STEP skipped: packed rows, temperature and config
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from polaris_jax.errors import UserError
from polaris_jax.files import staged
from polaris_jax.types import PackedBatch

NEWEST = 3  # batches that are kept


class SkippedBatch(NamedTuple):
    """step: that the update was to follow. temperature: of its rollouts, 1 for SFT. config: of the run's stage."""

    step: int
    temperature: float
    config: ConfigDict
    batches: list[PackedBatch]


def keep(workdir: Path, step: int, batches: Sequence[PackedBatch], temperature: float, config: ConfigDict) -> Path:
    """Writes a batch, and removes all but the newest `NEWEST`."""
    directory = workdir / "not_finite"
    directory.mkdir(exist_ok=True)
    head = {"step": step, "temperature": temperature, "config": json.loads(config.to_json_best_effort())}
    fields = ((i, name, x) for i, batch in enumerate(batches) for name, x in batch._asdict().items())
    arrays = {f"{i}.{name}": x for i, name, x in fields if x is not None}
    path = directory / f"{step}.npz"
    with staged(path) as staging:
        np.savez(staging, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **arrays)
    for old in sorted(directory.glob("[0-9]*.npz"), key=lambda path: int(path.stem))[:-NEWEST]:
        old.unlink()
    return path


def load(path: str | Path) -> SkippedBatch:
    """The batch of `keep`. Raises UserError where the file is missing or something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(file["head"].tobytes())
            count = 1 + max(int(name.split(".")[0]) for name in file.files if name != "head")
            fields = [[name for name in PackedBatch._fields if f"{i}.{name}" in file] for i in range(count)]
            batches = [PackedBatch(**{name: file[f"{i}.{name}"] for name in fields[i]}) for i in range(count)]
    except Exception as error:  # of many kinds, since np.load opens whatever the file looks like
        raise UserError(f"{path}: expected a batch of a run's not_finite/; {error}") from error
    return SkippedBatch(head["step"], head["temperature"], ConfigDict(head["config"]), batches)
