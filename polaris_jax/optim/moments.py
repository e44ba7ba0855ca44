"""How Adam's moments are kept between updates: float32, bfloat16 (half of it) or int8 in blocks (a quarter)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MOMENTS = ("float32", "bfloat16", "int8")
BLOCK = 256  # most values that share a scale
PART = 32  # values of a block that lie on one device
ZERO = {True: 127, False: 0}  # the code of zero, with and without a sign


class Blocks(NamedTuple):
    """codes: uint8, of the array's shape, places in a codebook. scales: float32, of that shape but for the axis that
    blocks lie along, whose length is their count; each is its block's largest |value|."""

    codes: jax.Array
    scales: jax.Array


class Decade(NamedTuple):
    """Magnitudes of one decade, evenly spaced: that of rank r, first <= r <= last, is start + step * r.

    above: magnitudes larger than this are nearest to one of this decade or of a higher one.
    """

    first: int
    last: int
    start: float
    step: float
    above: float


def _decades(signed: bool) -> tuple[Decade, ...]:
    """The magnitudes of dynamic tree quantisation, ascending (arXiv 2110.02861, section 1.3), without zero.

    Seven decades up to 1; each has twice as many values as the one below it, the middles of equal parts. A last
    "decade" is 1 alone. Starts and steps are whole multiples of so large a power of two that every value, and the
    middle between two values of a decade, is an exact float32 whichever way it is computed, with or without a fused
    multiply-add; this moves the paper's values by less than one in ten thousand.
    """
    decades, below = [], 0.0
    for place in range(7):
        count, top = 2 ** (place + (not signed)), 10.0 ** (place - 6)
        unit = 2.0 ** (math.ceil(math.log2(top)) - 23)
        step = 2 * unit * round(0.9 * top / count / (2 * unit))
        start = unit * round(top * (0.1 + 0.45 / count) / unit) - step * count
        decades.append(Decade(count, 2 * count - 1, start, step, _middle(below, start + step * count)))
        below = start + step * (2 * count - 1)
    return (*decades, Decade(2 * count, 2 * count, 0.0, 0.5 / count, _middle(below, 1.0)))


def _middle(low: float, high: float) -> float:
    """The largest float32 that is not nearer to `high` than to `low`."""
    middle = np.float32((low + high) / 2)
    return float(middle if middle <= (low + high) / 2 else np.nextafter(middle, np.float32(0)))


DECADES = {signed: _decades(signed) for signed in (True, False)}


def encode(x: jax.Array, kind: str, key: jax.Array, *, signed: bool) -> Any:
    """A moment as it is kept. x: float32. kind: one of `MOMENTS`. key: for bfloat16, whose rounding is random.

    bfloat16 rounds up or down with the chance that makes the mean right: the second moment changes by less than its
    last place an update, and would stand still if rounded to nearest. int8 takes the nearest value of the codebook
    times its block's largest (of two as near, the one nearer to zero); a second moment that is not zero never becomes
    zero, which would make its update unbounded (arXiv 2309.01507, section 4.1).
    """
    if kind == "float32":
        return x
    if kind == "bfloat16":
        noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
        return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    scales = _largest(x)
    relative = x / _spread(jnp.maximum(scales, jnp.finfo(jnp.float32).tiny), x.shape)
    return Blocks(_codes(relative, signed), scales)


def decode(kept: Any, *, signed: bool) -> jax.Array:
    """The float32 array of `encode`."""
    if not isinstance(kept, Blocks):
        return kept.astype(jnp.float32)
    return _values(kept.codes, signed) * _spread(kept.scales, kept.codes.shape)


def zeros(x: jax.Array, kind: str, *, signed: bool) -> Any:
    """A moment of zeros for the parameter x."""
    if kind != "int8":
        return jnp.zeros(x.shape, kind)
    shape = list(x.shape)
    shape[block_axis(x.ndim)] //= _block(x)
    return Blocks(jnp.full(x.shape, ZERO[signed], jnp.uint8), jnp.zeros(shape, jnp.float32))


def block_axis(ndim: int) -> int:
    """The axis that the blocks of an array lie along: a kernel's input, of others the last.

    A TPU's vectors lie along the last axis, and along another one it finds what is largest without laying the array out
    anew. Not along the first, so that pieces of an array have whole blocks.
    """
    return max(ndim - 2, 1) if ndim > 1 else 0


def _codes(relative: jax.Array, signed: bool) -> jax.Array:
    """The places of the values nearest to float32 numbers in [-1, 1] or [0, 1], as uint8.

    Elementwise and without a search or a table, so that it becomes part of the pass that makes its argument.
    """
    magnitude = jnp.abs(relative)
    start, step, inverse, last = 0.0, 1.0, 0.0, 0
    for decade in DECADES[signed]:
        above = magnitude > decade.above
        start, step = jnp.where(above, decade.start, start), jnp.where(above, decade.step, step)
        inverse, last = jnp.where(above, 1 / decade.step, inverse), jnp.where(above, decade.last, last)
    # The nearest rank, or one less where rounding may have erred; which of them is told by the exact middle.
    rank = jnp.floor((magnitude - start) * inverse + 0.49)
    rank = jnp.minimum(rank.astype(jnp.int32) + (magnitude > start + step * (rank + 0.5)), last)
    if signed:
        codes = jnp.maximum(ZERO[True] + jnp.where(relative < 0, -rank, rank), 0)  # there is a 1, but no -1
    else:
        codes = jnp.maximum(rank - 1, (relative > 0).astype(jnp.int32))
    return codes.astype(jnp.uint8)


def _values(codes: jax.Array, signed: bool) -> jax.Array:
    """The float32 numbers in [-1, 1] or [0, 1] that codes stand for."""
    codes = codes.astype(jnp.int32)
    rank = jnp.abs(codes - ZERO[True]) if signed else codes + 1
    magnitude = jnp.zeros(codes.shape, jnp.float32)
    for decade in DECADES[signed]:
        magnitude = jnp.where(rank >= decade.first, decade.start + decade.step * rank, magnitude)
    return jnp.where(codes < ZERO[True], -magnitude, magnitude) if signed else magnitude


def _block(x: jax.Array) -> int:
    """How many values of x share a scale: the largest power of two up to BLOCK that divides their axis."""
    length = x.shape[block_axis(x.ndim)]
    return min(BLOCK, length & -length)


def _spread(scales: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Each value's scale. Scales are what is reshaped: arithmetic on both sides of a reshape would not be one pass."""
    axis = block_axis(len(shape))
    return jnp.repeat(scales, shape[axis] // scales.shape[axis], axis)


def _largest(x: jax.Array) -> jax.Array:
    """The largest |value| of each block, shaped as scales are.

    In two steps: a block may lie on several devices, which then exchange what is largest of each PART values alone.
    """
    block = _block(x)
    part = min(PART, block)
    return _largest_of(block // part, _largest_of(part, jnp.abs(x)))


def _largest_of(count: int, x: jax.Array) -> jax.Array:
    """Of each so many values along the axis of the blocks."""
    axis = block_axis(x.ndim)
    return x.reshape(*x.shape[:axis], -1, count, *x.shape[axis + 1 :]).max(axis + 1)
