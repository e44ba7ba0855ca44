"""How AdamW's moments are kept between updates: float32, bfloat16 (half of it) or int8 in blocks (a quarter)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

MOMENTS = ("float32", "bfloat16", "int8")
BLOCK = 256  # most values that share a scale


class Blocks(NamedTuple):
    """codes: uint8, of the array's shape, places in a codebook. scales: float32 [..., n], a block's largest |value|."""

    codes: jax.Array
    scales: jax.Array


def _codebook(signed: bool) -> np.ndarray:
    """The 256 values of dynamic tree quantisation, ascending, in [-1, 1] or [0, 1] (arXiv 2110.02861, section 1.3).

    Seven decades; each has twice as many evenly spaced values as the one below it.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        middles = 10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2
        values += [*middles, *(-middles if signed else ())]
    return np.sort(np.asarray(values, np.float32))


CODEBOOKS = {signed: _codebook(signed) for signed in (True, False)}


def encode(x: jax.Array, kind: str, key: jax.Array, *, signed: bool) -> Any:
    """A moment as it is kept. x: float32. kind: one of `MOMENTS`. key: for bfloat16, whose rounding is random.

    bfloat16 rounds up or down with the chance that makes the mean right: the second moment changes by less than its
    last place an update, and would stand still if rounded to nearest. int8 takes the nearest value of a codebook times
    its block's largest; a second moment that is not zero never becomes zero, which would make its update unbounded
    (arXiv 2309.01507, section 4.1).
    """
    if kind == "float32":
        return x
    if kind == "bfloat16":
        noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
        return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    book = CODEBOOKS[signed]
    blocks = _in_blocks(x)
    scales = jnp.abs(blocks).max(axis=-1)
    relative = (blocks / jnp.maximum(scales, jnp.finfo(jnp.float32).tiny)[..., None]).reshape(x.shape)
    codes = jnp.searchsorted(jnp.asarray((book[1:] + book[:-1]) / 2), relative)
    if not signed:
        codes = jnp.where(relative > 0, jnp.maximum(codes, 1), codes)
    return Blocks(codes.astype(jnp.uint8), scales)


def decode(kept: Any, *, signed: bool) -> jax.Array:
    """The float32 array of `encode`."""
    if not isinstance(kept, Blocks):
        return kept.astype(jnp.float32)
    values = jnp.asarray(CODEBOOKS[signed])[kept.codes]
    return (_in_blocks(values) * kept.scales[..., None]).reshape(values.shape)


def zeros(x: jax.Array, kind: str, *, signed: bool) -> Any:
    """A moment of zeros for the parameter x."""
    return (
        encode(jnp.zeros_like(x), kind, jax.random.key(0), signed=signed) if kind == "int8" else jnp.zeros_like(x, kind)
    )


def sharding(of_param: NamedSharding, kind: str) -> Any:
    """Where a moment lies: where its parameter lies; the blocks' scales are not split along the last axis."""
    if kind != "int8":
        return of_param
    return Blocks(of_param, NamedSharding(of_param.mesh, PartitionSpec(*of_param.spec[:-1])))


def _in_blocks(x: jax.Array) -> jax.Array:
    """[..., N] as [..., n, block]: the largest power of two up to BLOCK that divides N."""
    block = min(BLOCK, x.shape[-1] & -x.shape[-1])
    return x.reshape(*x.shape[:-1], -1, block)
