"""LoRA: which parameters are trained, how the others are kept, and adapters added to their base.

Adapters lie in the tree of parameters, `lora_a` and `lora_b` beside the kernel that they adapt (layers.py), so that
whatever takes parameters takes them with adapters, too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from polaris_jax.models.presets import Lora, ModelConfig
from polaris_jax.models.quantise import map_kernels, quantise

ADAPTERS = ("lora_a", "lora_b")


def split(params: dict) -> tuple[dict, dict]:
    """What is trained of a tree of parameters, or of what belongs to them, and what is frozen: adapters and the rest.

    Without adapters all is trained.
    """
    adapters, rest = _apart(params)
    return (adapters, rest) if adapters else (params, {})


def _apart(params: dict) -> tuple[dict, dict]:
    flat = flatten_dict(params)
    adapters = {path: leaf for path, leaf in flat.items() if path[-1] in ADAPTERS}
    return unflatten_dict(adapters), unflatten_dict({path: flat[path] for path in flat.keys() - adapters.keys()})


def join(trained: dict, frozen: dict) -> dict:
    """The tree that `split` took apart."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))


def freeze(params: dict, model: ModelConfig, *, release: bool = False) -> dict:
    """The parameters, with adapters or without, as the trainer keeps them: without `model.lora` as they are.

    With it, all that are no adapters in the compute dtype, to which float32 would be cast at each use, or kernels as
    codes. release: kernels that become codes are deleted one by one, so that there is never room needed for both.
    """

    def codes(kernel: jax.Array) -> dict[str, jax.Array]:
        made = quantise(kernel, model.lora.weights)
        if release:
            jax.block_until_ready(made)
            kernel.delete()
        return made

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(model.dtype)

    if model.lora is None:
        return params
    adapters, base = _apart(params)
    base = map_kernels(base, codes, cast) if model.lora.weights else jax.tree.map(cast, base)
    return join(adapters, base)


def merge(params: Any, lora: Lora) -> Any:
    """The model with (alpha / rank) A B added to each kernel that has an adapter, kernels float32; all else as it is.

    Kernels that are codes are decoded. Layers may be stacked or a list.
    """
    if isinstance(params, list):
        return [merge(layer, lora) for layer in params]
    if not isinstance(params, dict):
        return params
    if "kernel" not in params:
        return {name: merge(value, lora) for name, value in params.items()}
    rest = {name: value for name, value in params.items() if name == "bias"}
    return rest | {"kernel": _merged(params, lora.alpha / lora.rank)}


@jax.jit
def _merged(params: dict, scale: float) -> jax.Array:
    kernel = params["kernel"].astype(jnp.float32)
    if "kernel_scale" in params:
        kernel *= params["kernel_scale"][..., None, :]
    if "lora_a" in params:
        kernel += scale * jnp.matmul(params["lora_a"], params["lora_b"], precision="highest")
    return kernel


def checksum(params: dict) -> int:
    """A number below 2**32 that tells parameters from others by values and places; the same on every mesh."""
    total = 0
    for leaf in jax.tree.leaves(params):
        total = (31 * total + int(_leaf_checksum(leaf))) % 2**32
    return total


@jax.jit
def _leaf_checksum(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    places = sum(jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * (2 * 7919**axis) for axis in range(x.ndim))
    return jnp.sum(bits * (places + 1), dtype=jnp.uint32)
