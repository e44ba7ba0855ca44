"""Linear layers and norms: a parameter is float32, has logical axis names, and is cast to the compute dtype in use."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn


class Linear(nn.Module):
    """`x @ kernel (+ bias)` on the last axis. axes: logical names of the kernel's two axes."""

    features: int
    axes: tuple[str, str]
    dtype: str
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        x_ND, kernel = x.reshape(-1, x.shape[-1]), kernel.astype(self.dtype)
        if self.has_variable("params", "kernel_scale"):  # of the sampler: codes and a scale (rollout/quantise.py)
            scale = self.get_variable("params", "kernel_scale")
            y = (jnp.matmul(x_ND, kernel, preferred_element_type=jnp.float32) * scale).astype(self.dtype)
        else:
            y = x_ND @ kernel
        y = y.reshape(*x.shape[:-1], self.features)
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            y = y + self.param("bias", init, (self.features,), jnp.float32).astype(self.dtype)
        return y


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32 (arXiv 1910.07467)."""

    eps: float
    dtype: str
    axis: str = "norm"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return normed.astype(self.dtype) * scale.astype(self.dtype)
