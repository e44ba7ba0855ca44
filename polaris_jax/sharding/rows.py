"""Packed batches on the mesh."""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import Mesh

from polaris_jax.sharding.rules import rows_sharding
from polaris_jax.types import PackedBatch

TRAINED_STEP = 128  # see `trained_tokens`


def put_rows(batch: PackedBatch, mesh: Mesh) -> PackedBatch:
    """The batch on the mesh, with rows of padding where data x fsdp does not divide their number.

    Every process holds all of the batch on the host and puts its own share.
    """
    sharding = rows_sharding(mesh)
    missing = -len(batch.tokens) % (mesh.shape["data"] * mesh.shape["fsdp"])
    if missing:
        batch = jax.tree.map(lambda x: np.pad(x, ((0, missing), (0, 0))), batch)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)


def trained_tokens(batch: PackedBatch, mesh: Mesh) -> int:
    """How many tokens hold all the trained ones of any device when `put_rows` has put the batch.

    Only so many are unembedded. A multiple of `TRAINED_STEP` or of a sixteenth of the device's tokens, whichever is
    more, so that few programs are compiled; the same on every process.
    """
    groups, parts = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["context"]
    trained = np.pad(batch.mask > 0, ((0, -len(batch.mask) % groups), (0, 0)))
    most = trained.reshape(groups, -1, parts, trained.shape[1] // parts).sum(axis=(1, 3)).max()
    tokens = trained.size // (groups * parts)
    step = max(TRAINED_STEP, math.ceil(tokens / 16))
    return min(tokens, step * max(1, math.ceil(most / step)))
