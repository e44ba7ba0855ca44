"""A batch whose update was skipped, looked through sequence by sequence for what was not finite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from polaris_jax import config as configs
from polaris_jax import hf
from polaris_jax.hf import native
from polaris_jax.models.lora import freeze, join
from polaris_jax.models.presets import ModelConfig
from polaris_jax.rollout.engine import extended
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rows import put_rows
from polaris_jax.training.not_finite import SkippedBatch
from polaris_jax.training.update import make_gradient, make_logprobs


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


def load(workdir: Path, mesh: Mesh, step: int) -> tuple[ModelConfig, Any]:
    """A run's model and its parameters after a step, with LoRA adapters and frozen base as the trainer kept them."""
    model, params = native.load_params(workdir, mesh, step=step)
    if model.lora is None:
        return model, params
    return model, join(params, freeze(hf.load_base(workdir, model, mesh), model, release=True))


def bad_parameters(params: Any) -> dict[str, int]:
    """How many values are not finite, by the name of the array that holds them."""
    counts = jax.device_get(jax.jit(lambda p: jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x)), p))(params))
    named = jax.tree_util.tree_leaves_with_path(counts)
    return {jax.tree_util.keystr(path): int(count) for path, count in named if count}


def find(skipped: SkippedBatch, model: ModelConfig, params: Any) -> Iterator[Finding]:
    """Loss and gradient of each sequence alone, on-policy and without the KL term. params: what the update met."""
    config, mesh = configs.override(skipped.config, {"algorithm.kl": 0.0}), make_mesh(skipped.config.mesh)
    model = extended(model, config.rollout)
    gradient, logprobs_of = make_gradient(model, config, mesh), jax.jit(make_logprobs(model, mesh))
    temperature, one = np.float32(skipped.temperature), np.float32(1)
    for b, batch in enumerate(skipped.batches):
        for r in range(len(batch.tokens)):
            row = jax.tree.map(lambda x, r=r: x[r : r + 1], batch)
            if not row.mask.any():
                continue
            logprobs = np.asarray(logprobs_of(params, put_rows(row, mesh), temperature)[0])[:1]
            segments = row.segment_ids
            for segment in range(1, segments.max() + 1):
                alone = row._replace(mask=np.where(segments == segment, row.mask, 0))
                if not alone.mask.any():
                    continue
                grads, (sums, _) = gradient(params, [put_rows(alone, mesh)], temperature, one, one)
                loss, norm, place = float(sums["loss"]), float(optax.tree.norm(grads)), segments[0] == segment
                trained = row.mask[0][place] > 0
                found = []
                for what, values in (
                    ("log-prob", logprobs),
                    ("behaviour log-prob", row.behaviour_logprobs),
                    ("advantage", row.advantages),
                ):
                    bad = trained & ~np.isfinite(values[0][place])
                    found += [(what, int(np.argmax(bad)) + 1)] if bad.any() else []
                found += [] if np.isfinite(loss) else [("loss", None)]
                found += [] if np.isfinite(norm) else [("gradient", None)]
                yield Finding(b, r, segment, int(place.sum()) + 1, loss, norm, *(found or [("", None)])[0])
