"""Projection kernels in 8 bits, for the sampler and LoRA's frozen base: codes, and a float32 scale for each output
channel.

The embedding and the unembedding stay in the model's dtype. They are a tenth of a 4B model, and an error in them goes
into the logits, and so into every recorded log-prob, undamped: residual stream and norms lie behind every other kernel.
Norms and biases are too small to count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from polaris_jax.models.presets import ModelConfig

CODES = {"int8": (jnp.int8, 127), "fp8": (jnp.float8_e4m3fn, 448)}  # name -> dtype and largest value used


@partial(jax.jit, static_argnames="weights")
def quantise(kernel: jax.Array, weights: str) -> dict[str, jax.Array]:
    """`kernel`, codes [..., in, out], and `kernel_scale`, float32 [..., out], for `models.layers.Linear`.

    kernel: [..., in, out]. codes x scale is within half a step of it: scale / 2 for int8, where scale is the
    channel's largest magnitude / 127; for fp8 a sixteenth of the weight itself, or scale / 1024 where that is more.
    """
    dtype, largest = CODES[weights]
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True) / largest
    codes = kernel / jnp.where(scale == 0, 1, scale)
    if jnp.issubdtype(dtype, jnp.integer):
        codes = jnp.round(codes)
    return {"kernel": codes.astype(dtype), "kernel_scale": scale[..., 0, :]}


def scale_sharding(kernel: NamedSharding) -> dict[str, NamedSharding]:
    """Where the results of `quantise` lie, from where the kernel does."""
    *stacked, _, out = kernel.spec
    return {"kernel": kernel, "kernel_scale": NamedSharding(kernel.mesh, PartitionSpec(*stacked, out))}


def map_kernels(tree: dict, kernel: Callable[[Any], dict], other: Callable[[Any], Any] = lambda x: x) -> dict:
    """The tree of parameters, or of what belongs to them, with the entries that `kernel` makes of each projection's
    kernel in its place, and `other` of all else. Layers may be stacked or a list."""
    new = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            new[name] = map_kernels(value, kernel, other)
        elif isinstance(value, list):
            new[name] = [map_kernels(layer, kernel, other) for layer in value]
        else:
            new |= kernel(value) if name == "kernel" else {name: other(value)}
    return new


def weight_bytes(model: ModelConfig, weights: str) -> int:
    """Bytes of the sampler's weights; the scales and what norms take beyond 8 bits are left out."""
    item = jnp.dtype(model.dtype).itemsize
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    return embeddings * item + (model.num_parameters - embeddings) * (1 if weights else item)
