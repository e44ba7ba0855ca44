"""What each platform does in its own way: the one table that the rest of the sampler looks up."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from polaris_jax.models.presets import ModelConfig
from polaris_jax.ops.paged_attention import Cache, Pages, paged_attention
from polaris_jax.rollout import cpu, new_tokens


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

    kernels: whose kernels `paged_attention` runs. transpose: whether the unembedding is kept transposed, too.
    new_order: how `new_tokens` lie. few_programs: whether compiling costs more than padding: page tables are then as
    wide as the longest sequence, whose empty pages the kernels skip, chunks that follow others in prefill go one by
    one, and prefill has few sizes of chunks and batches. read_pages, slot_buckets, memory: as the functions above.
    keep_pools(pools): what stays allocated between two calls. reuse_pools(kept, pages): those of it that the next call,
    of that many pages, begins with, emptied. shares(model, mesh, weights): whether the sampler reads the trainer's
    parameters where they lie, as `shared_layers` of them, beside a transposed unembedding.
    """

    kernels: str
    transpose: bool = False
    new_order: new_tokens.Order = new_tokens.AS_PAGES
    few_programs: bool = True
    read_pages: Callable[[str, Cache], Callable] = read_pages
    slot_buckets: Callable[[int], list[int]] = slot_buckets
    memory: Callable[[jax.Device], float] = memory
    keep_pools: Callable[[list[Pages]], list[Pages]] = lambda pools: []
    reuse_pools: Callable[[list[Pages], int], list[Pages]] = lambda kept, pages: []
    shares: Callable[[ModelConfig, Mesh, str], bool] = lambda model, mesh, weights: False
    shared_layers: Callable[[Any], Any] | None = None


PLATFORMS = {
    "gpu": Platform("gpu"),
    "tpu": Platform("tpu"),
    "cpu": Platform(
        "cpu", True, cpu.NEW_ORDER, False, cpu.gather_first, cpu.slot_buckets, cpu.memory,
        keep_pools=list, reuse_pools=cpu.reuse_pools,
        shares=cpu.shares, shared_layers=cpu.shared_layers,
    ),
}  # fmt: skip
