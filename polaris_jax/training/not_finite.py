"""Batches whose update was skipped because something was not finite: kept on disk, and looked through row by row.

WORKDIR/not_finite/STEP.npz   the batch that the update behind STEP skipped: packed rows, temperature and config
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from polaris_jax import config as configs
from polaris_jax.errors import UserError
from polaris_jax.models.presets import ModelConfig
from polaris_jax.rl.gradients import make_gradient, make_logprobs, put_rows
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.types import PackedBatch

NEWEST = 3  # batches that are kept


class Kept(NamedTuple):
    """step: that the update was to follow. temperature: of its rollouts, 1 for SFT. config: of the run's stage."""

    step: int
    temperature: float
    config: ConfigDict
    batches: list[PackedBatch]


class Finding(NamedTuple):
    """One sequence of a batch. segment: its number in the row, from 1. grad_norm: of its loss alone, not averaged.

    what: the first of log-prob, behaviour log-prob, advantage, loss or gradient that is not finite, "" where all are.
    token: index of the first such target in the sequence, None where no single token is to blame.
    """

    batch: int
    row: int
    segment: int
    tokens: int
    loss: float
    grad_norm: float
    what: str
    token: int | None


def keep(workdir: Path, step: int, batches: Sequence[PackedBatch], temperature: float, config: ConfigDict) -> Path:
    """Writes a batch, and removes all but the newest `NEWEST`."""
    directory = workdir / "not_finite"
    directory.mkdir(exist_ok=True)
    head = {"step": step, "temperature": temperature, "config": json.loads(config.to_json_best_effort())}
    arrays = {f"{i}.{name}": x for i, batch in enumerate(batches) for name, x in batch._asdict().items()}
    path = directory / f"{step}.npz"
    np.savez(path, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **arrays)
    for old in sorted(directory.glob("*.npz"), key=lambda path: int(path.stem))[:-NEWEST]:
        old.unlink()
    return path


def load(path: str | Path) -> Kept:
    """The batch of `keep`. Raises UserError where the file is missing or something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(file["head"].tobytes())
            count = 1 + max(int(name.split(".")[0]) for name in file.files if name != "head")
            batches = [PackedBatch(*(file[f"{i}.{name}"] for name in PackedBatch._fields)) for i in range(count)]
    except Exception as error:  # of many kinds, since np.load opens whatever the file looks like
        raise UserError(f"{path}: expected a batch of a run's not_finite/; {error}") from error
    return Kept(head["step"], head["temperature"], ConfigDict(head["config"]), batches)


def bad_parameters(params: Any) -> dict[str, int]:
    """How many values are not finite, by the name of the array that holds them."""
    counts = jax.device_get(jax.jit(lambda p: jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x)), p))(params))
    named = jax.tree_util.tree_leaves_with_path(counts)
    return {jax.tree_util.keystr(path): int(count) for path, count in named if count}


def find(kept: Kept, model: ModelConfig, params: Any) -> Iterator[Finding]:
    """Loss and gradient of each sequence alone, on-policy and without the KL term. params: what the update met."""
    config, mesh = configs.override(kept.config, {"algorithm.kl": 0.0}), make_mesh(kept.config.mesh)
    gradient, logprobs_of = make_gradient(model, config, mesh), jax.jit(make_logprobs(model, mesh))
    temperature, scale = np.float32(kept.temperature), np.float32(1)
    for b, batch in enumerate(kept.batches):
        for r in range(len(batch.tokens)):
            row = PackedBatch(*(x[r : r + 1] for x in batch))
            if not row.mask.any():
                continue
            logprobs = np.asarray(logprobs_of(params, put_rows(row, mesh), temperature)[0])[:1]
            segments = np.abs(row.segment_ids)
            for segment in range(1, segments.max() + 1):
                alone = row._replace(mask=np.where(segments == segment, row.mask, 0))
                if not alone.mask.any():
                    continue
                grads, (sums, _) = gradient(params, [put_rows(alone, mesh)], [None], [None], temperature, scale)
                loss, norm, place = float(sums["loss"]), float(optax.tree.norm(grads)), segments[0] == segment
                learnt = row.mask[0][place] > 0
                found = []
                for what, values in (
                    ("log-prob", logprobs),
                    ("behaviour log-prob", row.behaviour_logprobs),
                    ("advantage", row.advantages),
                ):
                    bad = learnt & ~np.isfinite(values[0][place])
                    found += [(what, int(np.argmax(bad)) + 1)] if bad.any() else []
                found += [] if np.isfinite(loss) else [("loss", None)]
                found += [] if np.isfinite(norm) else [("gradient", None)]
                yield Finding(b, r, segment, int(place.sum()) + 1, loss, norm, *(found or [("", None)])[0])
