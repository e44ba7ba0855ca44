"""The matrix product of the layers, with a gradient that is fast on CPUs as well."""

from __future__ import annotations

import time
from functools import cache, partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, y: jax.Array, dtype: str) -> jax.Array:
    """`x @ y` of [..., M, K] and [..., K, N] with the same leading axes, accumulated and returned in `dtype`.

    Inside a `shard_map` that checks replication, x and y vary over the same mesh axes.

    On CPUs XLA hands a product to YNNPACK only where the left operand is contracted over its last axis; others, such as
    the gradient x.T @ d_out of a kernel, take Eigen's loops and up to 1.6 times as long. There the smaller of x and
    d_out is transposed in memory first.
    """
    return jnp.matmul(x, y, preferred_element_type=dtype)


def _forward(x, y, dtype):
    return matmul(x, y, dtype), (x, y)


def _backward(dtype, operands, d_out):
    return jax.lax.platform_dependent(*operands, d_out, cpu=_transposed_first, default=partial(_plain, dtype=dtype))


def _plain(x, y, d_out, *, dtype):
    return jax.vjp(partial(jnp.matmul, preferred_element_type=dtype), x, y)[1](d_out)


def _transposed_first(x, y, d_out):
    d_x = jnp.matmul(d_out, y.mT, preferred_element_type=x.dtype)
    if x.size > d_out.size:
        return d_x, _unfolded(d_out.mT, x, y.dtype).mT
    return d_x, _unfolded(x.mT, d_out, y.dtype)


def _unfolded(x, y, dtype):
    """x @ y, where XLA must not fold a transposition before or after it into the product."""
    x = jax.lax.optimization_barrier(x)
    return jax.lax.optimization_barrier(jnp.matmul(x, y, preferred_element_type=dtype))


matmul.defvjp(_forward, _backward)


@cache
def matmul_peak(dtype: str) -> float:
    """FLOP/s of one device on a large matrix product in `dtype`, the best of a few; measured once per process."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.dot)
    product(x, x).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)
