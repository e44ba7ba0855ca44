"""Packed batches on the mesh."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh

from polaris_jax.sharding.rules import rows_sharding
from polaris_jax.types import PackedBatch


def row_groups(mesh: Mesh) -> int:
    """Groups of devices that share a batch's rows: each takes as many; the devices of a group share each row."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_rows(batch: PackedBatch, mesh: Mesh) -> PackedBatch:
    """The batch on the mesh, with rows of padding where `row_groups` do not divide their number, as `pack` makes them.

    Every process holds all of the batch on the host and puts its own share.
    """
    sharding = rows_sharding(mesh)
    missing = -len(batch.tokens) % row_groups(mesh)
    if missing:
        batch = jax.tree.map(lambda x: np.pad(x, ((0, missing), (0, 0))), batch)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)
