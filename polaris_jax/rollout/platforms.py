"""What each platform does in its own way: the one table that the rest of the sampler looks up."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from polaris_jax.models.layers import project
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import unembed, unembedding
from polaris_jax.ops.paged_attention import Cache, Pages, paged_attention
from polaris_jax.rollout import cpu


def logits(model: ModelConfig, params: Any, hidden: jax.Array) -> jax.Array:
    """Float32 [..., V] of hidden states [..., D]."""
    return unembed(hidden, unembedding(params, model))


def read_pages(kernels: str, cache: Cache) -> Callable:
    """`attend(q, layer, new, visible)`, `paged_attention` over the cache for all steps of a call."""
    return partial(_read, kernels, cache)


def _read(kernels, cache, q, layer, new, visible):
    return paged_attention(kernels, q, cache, layer, new, visible)


def slot_buckets(slots: int) -> list[int]:
    """How many slots a decoding call may have, smallest first: all, then a quarter of them, down to at most 16.

    The weights are read once a step however many slots there are, so more sizes would gain less than compiling costs.
    """
    sizes = [slots]
    while sizes[-1] > 16:
        sizes.append(-(-sizes[-1] // 4))
    return sizes[::-1]


def memory(device: jax.Device) -> float:
    """Bytes that a device's allocator may use, infinite where that is not known."""
    return (device.memory_stats() or {}).get("bytes_limit", math.inf)


class Platform(NamedTuple):
    """What is done in another way on another platform; the defaults are those of accelerators.

    kernels: whose kernels `paged_attention` runs. lay_out(model, params): the sampler's parameters as the programs want
    them; None: as they are. project: how `Transformer` projects with them. logits, read_pages, slot_buckets, memory: as
    the functions above. keep_pools(pools): what stays allocated between two calls. reuse_pools(kept, pages): those of
    it that the next call, of that many pages, begins with, emptied.
    """

    kernels: str
    lay_out: Callable[[ModelConfig, Any], Any] | None = None
    project: Callable[..., list[jax.Array]] = project
    logits: Callable[[ModelConfig, Any, jax.Array], jax.Array] = logits
    read_pages: Callable[[str, Cache], Callable] = read_pages
    slot_buckets: Callable[[int], list[int]] = slot_buckets
    memory: Callable[[jax.Device], float] = memory
    keep_pools: Callable[[list[Pages]], list[Pages]] = lambda pools: []
    reuse_pools: Callable[[list[Pages], int], list[Pages]] = lambda kept, pages: []


PLATFORMS = {
    "gpu": Platform("gpu"),
    "tpu": Platform("tpu"),
    "cpu": Platform(
        "cpu", cpu.lay_out, cpu.project_joined, cpu.logits, cpu.gather_first, cpu.slot_buckets, cpu.memory,
        keep_pools=list, reuse_pools=cpu.reuse_pools,
    ),
}  # fmt: skip
