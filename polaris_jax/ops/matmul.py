"""Products and sums with parameters, whose gradients are summed in float32, and fast on CPUs as well."""

from __future__ import annotations

import time
from functools import cache, partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, y: jax.Array, dtype: str) -> jax.Array:
    """`x @ y` of [..., M, K] and [..., K, N] with the same leading axes, accumulated and returned in `dtype`.

    y is cast to the dtype of x. It may be a float32 parameter, whose gradient then is not rounded to that dtype: the
    sum over rows, on a device and over devices, is float32. All products are of arrays in the dtype of x.
    Inside a `shard_map` that checks replication, x and y vary over the same mesh axes.
    """
    return jnp.matmul(x, y.astype(x.dtype), preferred_element_type=dtype)


def _forward(x, y, dtype):
    return matmul(x, y, dtype), (x, y)


def _backward(dtype, operands, d_out):
    x, y = operands
    d_out = d_out.astype(x.dtype)
    d_x = jnp.matmul(d_out, y.astype(x.dtype).mT, preferred_element_type=x.dtype)
    return d_x, transposed_matmul(x, d_out).astype(y.dtype)


matmul.defvjp(_forward, _backward)


@jax.custom_vjp
def frozen_matmul(x: jax.Array, y: jax.Array, scale: jax.Array | None = None) -> jax.Array:
    """`x @ y`, or `x @ y * scale` of codes y [K, N] and float32 scales [N], of x [M, K]; in the dtype of x.

    Only x has a gradient, and nothing but the parameters is kept for it. Sums of products with codes are float32.
    """
    if scale is None:
        return matmul(x, y, x.dtype)
    return (matmul(x, y, "float32") * scale).astype(x.dtype)


def _frozen_backward(parameters, d_out):
    y, scale = parameters
    d_out = d_out if scale is None else (d_out * scale).astype(d_out.dtype)
    return matmul(d_out, y.mT, d_out.dtype), None, None


frozen_matmul.defvjp(lambda x, y, scale=None: (frozen_matmul(x, y, scale), (y, scale)), _frozen_backward)


def transposed_matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x.mT @ y` of [..., N, K] and [..., N, M], float32.

    On CPUs XLA hands a product to YNNPACK only where the left operand is contracted over its last axis; others take
    Eigen's loops and up to 1.6 times as long. There the smaller of x and y is transposed in memory first.
    """
    return jax.lax.platform_dependent(x, y, cpu=_transposed_first, default=_plain)


def _plain(x, y):
    return jnp.matmul(x.mT, y, preferred_element_type=jnp.float32)


def _transposed_first(x, y):
    return _unfolded(y.mT, x).mT if x.size > y.size else _unfolded(x.mT, y)


def _unfolded(x, y):
    """x @ y, where XLA must not fold a transposition before or after it into the product."""
    x = jax.lax.optimization_barrier(x)
    return jax.lax.optimization_barrier(jnp.matmul(x, y, preferred_element_type=jnp.float32))


@jax.custom_vjp
def scaled(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x [..., N] times a parameter [N] in the dtype of x; the parameter's gradient is summed in float32."""
    return x * scale.astype(x.dtype)


def _scaled_backward(operands, d_out):
    x, scale = operands
    d_scale = jnp.sum(d_out.astype(jnp.float32) * x.astype(jnp.float32), axis=range(x.ndim - 1))
    return d_out * scale.astype(x.dtype), d_scale.astype(scale.dtype)


scaled.defvjp(lambda x, scale: (scaled(x, scale), (x, scale)), _scaled_backward)


@jax.custom_vjp
def biased(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., N] and a parameter [N] in the dtype of x; the parameter's gradient is summed in float32."""
    return x + bias.astype(x.dtype)


def _biased_backward(bias, d_out):
    return d_out, jnp.sum(d_out, axis=range(d_out.ndim - 1), dtype=jnp.float32).astype(bias.dtype)


biased.defvjp(lambda x, bias: (biased(x, bias), bias), _biased_backward)


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
