"""What a CPU does otherwise, each entry of `platforms.PLATFORMS["cpu"]`: it spends memory, of which it has plenty, on
speed, and a slot of padding costs it as much as any other."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import unrolled
from polaris_jax.ops.paged_attention import CACHED_ORDER, Cache, Pages, cached_attention, gather_pages

NEW_ORDER = CACHED_ORDER  # products then walk along memory


def gather_first(_: str, cache: Cache) -> Callable:
    """`platforms.read_pages`, where each sequence's pages are copied into one piece before the first step."""
    keys, values = cache.pages
    pieces = [gather_pages(keys[layer], values[layer], cache.table) for layer in range(len(keys))]

    def attend(q, layer, new, visible):
        return cached_attention(q, pieces[layer], cache.lengths, new, visible)

    return attend


def slot_buckets(slots: int) -> list[int]:
    """How many slots a decoding call may have: all, three quarters, a half, and so on, down to at most 4."""
    sizes, size = {slots}, slots
    while size > 4:
        sizes.add(-(-size * 3 // 4))
        size = -(-size // 2)
        sizes.add(size)
    return sorted(sizes)


def memory(_: jax.Device) -> float:
    """Bytes of the host's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def reuse_pools(pools: list[Pages], pages: int) -> list[Pages]:
    """The kept pools, emptied, which takes less than new ones; none where they are of another size, or lost."""
    if any(x.shape[1] != pages or x.is_deleted() for pool in pools for x in pool):
        return []
    return [_empty(pool) for pool in pools]


def shares(model: ModelConfig, mesh: Mesh, weights: str) -> bool:
    """Whether the sampler reads the trainer's layers where they lie: on a single device, in the trainer's dtype.

    A second copy of a large model would take more than it gains; models that the trainer unrolls are small.
    """
    merged = model.lora is not None  # for the sampler
    return mesh.size == 1 and model.dtype == "float32" and not (weights or merged or unrolled(model))


def shared_layers(params: Any) -> Any:
    """The parameters with a list of layers, each array of which is a view of the stack of all.

    While a view lives, a program that would donate the stack copies it instead.
    """
    leaves, structure = jax.tree.flatten(params["layers"])
    stacks = [np.asarray(leaf) for leaf in leaves]  # no copies on a CPU
    layers = (
        jax.device_put([stack[i] for stack in stacks], leaves[0].sharding.mesh.devices.flat[0], may_alias=True)
        for i in range(len(stacks[0]))
    )
    return params | {"layers": [jax.tree.unflatten(structure, layer) for layer in layers]}


@partial(jax.jit, donate_argnums=0, keep_unused=True)
def _empty(pages: Pages) -> Pages:
    return jax.tree.map(jnp.zeros_like, pages)
