"""Linear layers and norms: a parameter is float32, has logical axis names, and is cast to the compute dtype in use.

Gradients of parameters are float32 from the first sum on (ops/matmul.py).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from polaris_jax.models.presets import Lora
from polaris_jax.ops.matmul import biased, frozen_matmul, matmul, scaled


class Linear(nn.Module):
    """`x @ kernel (+ bias)` of x [..., in], in `dtype`: [..., features].

    axes: logical names of the kernel's two axes. The kernel may be codes, with the scale of each column in
    `kernel_scale` (models/quantise.py). lora: the kernel is frozen, and where the layer is a target, the parameters may
    hold an adapter beside it: `lora_a` [in, rank] and `lora_b` [rank, features], which begins at 0.
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    use_bias: bool = False
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        scale = self.get_variable("params", "kernel_scale", None)
        x_ND = x.reshape(-1, x.shape[-1])
        trained = self.lora is None and scale is None
        y = matmul(x_ND, kernel, self.dtype) if trained else frozen_matmul(x_ND, kernel, scale)
        target = self.lora is not None and f"{self.name}_proj" in self.lora.targets
        if target and (self.is_initializing() or self.has_variable("params", "lora_a")):
            # as peft begins: A evenly within 1 / sqrt(in), B at 0, so that the model is the base's at first
            even = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            init = nn.with_logical_partitioning(even, (self.axes[0], "lora"))
            a_Dr = self.param("lora_a", init, (x.shape[-1], self.lora.rank), jnp.float32)
            init = nn.with_logical_partitioning(nn.initializers.zeros, ("lora", self.axes[1]))
            b_rF = self.param("lora_b", init, (self.lora.rank, self.features), jnp.float32)
            y += self.lora.alpha / self.lora.rank * matmul(matmul(x_ND, a_Dr, self.dtype), b_rF, self.dtype)
        y = checkpoint_name(y, "projection")
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            y = biased(y, self.param("bias", init, (self.features,), jnp.float32))
        return y.reshape(*x.shape[:-1], -1)


def project(x: jax.Array, *layers: Linear) -> list[jax.Array]:
    """What each of the layers makes of x [..., in]: in one product where the parameters have their kernels side by
    side, as `joined` (rollout/layout.py)."""
    first, *others = layers
    if not first.parent.has_variable("params", "joined"):
        return [layer(x) for layer in layers]
    ends = [first.features]
    for layer in others:
        ends.append(ends[-1] + layer.features)
    joined = Linear(ends.pop(), first.axes, first.dtype, first.use_bias, name="joined")
    return jnp.split(joined(x), ends, axis=-1)


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
        return scaled(normed.astype(self.dtype), scale)
