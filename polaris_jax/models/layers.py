"""Linear layers and norms: a parameter is float32, has logical axis names, and is cast to the compute dtype in use."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from polaris_jax.ops.matmul import matmul


class Weights(NamedTuple):
    """Of a linear layer: kernel [in, out], the scale [out] of its columns where they are codes (rollout/quantise.py),
    bias [out] where there is one."""

    kernel: jax.Array
    scale: jax.Array | None
    bias: jax.Array | None


class Linear(nn.Module):
    """Makes the weights of a linear layer for inputs of a width; `project` applies them.

    axes: logical names of the kernel's two axes.
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    use_bias: bool = False

    @nn.compact
    def __call__(self, width: int) -> Weights:
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), self.axes)
        kernel = self.param("kernel", init, (width, self.features), jnp.float32).astype(self.dtype)
        scale = self.get_variable("params", "kernel_scale", None)
        bias = None
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            bias = self.param("bias", init, (self.features,), jnp.float32).astype(self.dtype)
        return Weights(kernel, scale, bias)


def project(x: jax.Array, *layers: Weights, merged: bool = False) -> list[jax.Array]:
    """`x @ kernel (+ bias)` of x [..., in] for each layer, [..., out]. merged: in one product, kernels side by side."""
    if merged:
        ends = np.cumsum([layer.kernel.shape[1] for layer in layers])
        parts = zip(*layers, strict=True)
        joined = Weights(*(None if part[0] is None else jnp.concatenate(part, axis=-1) for part in parts))
        return jnp.split(project(x, joined)[0], ends[:-1], axis=-1)
    x_ND, outs = x.reshape(-1, x.shape[-1]), []
    for kernel, scale, bias in layers:
        if scale is None:
            y = matmul(x_ND, kernel, kernel.dtype)
        else:
            y = (jnp.matmul(x_ND, kernel, preferred_element_type=jnp.float32) * scale).astype(kernel.dtype)
        y = checkpoint_name(y, "projection")
        outs.append((y if bias is None else y + bias).reshape(*x.shape[:-1], -1))
    return outs


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
