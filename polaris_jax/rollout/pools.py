"""The page pools as arrays: their shape, their sharding, and how large they are."""

from __future__ import annotations

import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from polaris_jax.models.presets import ModelConfig
from polaris_jax.ops.paged_attention import Pages


def pool_layout(model: ModelConfig, mesh: Mesh, pages: int, page_size: int) -> tuple[tuple[int, ...], NamedSharding]:
    """Shape and sharding of the keys, or values, of a pool: kv heads over the tensor axis where they divide."""
    shape = (model.num_hidden_layers, pages, page_size, model.num_key_value_heads, model.head_dim)
    axis = "tensor" if model.num_key_value_heads % mesh.shape["tensor"] == 0 else None
    return shape, NamedSharding(mesh, PartitionSpec(None, None, None, axis, None))


def new_pool(model: ModelConfig, mesh: Mesh, pages: int, page_size: int, dtype: str) -> Pages:
    """An empty page pool."""
    shape, sharding = pool_layout(model, mesh, pages, page_size)
    return tuple(jnp.zeros(shape, dtype, device=sharding) for _ in range(2))


def page_bytes(model: ModelConfig, mesh: Mesh, config: ConfigDict) -> int:
    """Keys and values of one page, in all layers, on one device. config: the section `rollout`, here and below."""
    kv_heads = model.num_key_value_heads
    if kv_heads % mesh.shape["tensor"] == 0:
        kv_heads //= mesh.shape["tensor"]
    item = jnp.dtype(config.cache_dtype or model.dtype).itemsize
    return 2 * model.num_hidden_layers * config.page_size * kv_heads * model.head_dim * item


def pool_pages(model: ModelConfig, mesh: Mesh, config: ConfigDict, sequence_pages: int) -> int:
    """Pages of the pool: what `cache_gib` holds, or enough for a sequence of that many pages in every slot."""
    if config.cache_gib:
        return int(config.cache_gib * 2**30) // page_bytes(model, mesh, config)
    return config.slots * sequence_pages + 1
