"""Attention of new tokens over a paged cache and each other: the portable version that kernels are compared with.

A sequence's keys are laid out [B, K, W, d, p] and its values [B, K, W * p, d] here: both products of decoding then run
along the contiguous axis, over blocks that are read from memory in order, several times faster than from [B, S, K, d].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from polaris_jax.ops.cudnn import DTYPES, cudnn_chunk_attention
from polaris_jax.ops.paged_decode import gpu_paged_decode, tpu_paged_decode
from polaris_jax.ops.splash import splash_attention

Pages = tuple[jax.Array, jax.Array]  # keys and values of all layers, [L, P, p, K, d]
DECODE_KERNELS = {"gpu": gpu_paged_decode, "tpu": tpu_paged_decode}  # other platforms run the portable version
CACHED_ORDER = (0, 2, 3, 1), (0, 2, 1, 3)  # axes of [B, N, K, d] as `cached_attention` takes new keys and values


class Cache(NamedTuple):
    """What sequences have in the page pool. table: int32 [B, W], their pages. lengths: int32 [B], tokens in them."""

    pages: Pages
    table: jax.Array
    lengths: jax.Array


def paged_attention(
    platform: str,
    q_BTHd: jax.Array,
    cache: Cache,
    layer: int,
    new: tuple[jax.Array, jax.Array],
    visible_BTN: jax.Array,
    **options: Any,
) -> jax.Array:
    """`cached_attention` over a layer's pages, by the platform's kernel where it has one.

    new: keys and values [B, N, K, d]. visible: bool [1, T, N]. Several queries (T = N > 1) see the new tokens up to
    their own, as `visible` must say. Kernels run on each device's own heads, on the mesh in whose context this is
    traced. options: of the kernel, such as interpret=True.
    """
    several = q_BTHd.shape[1] > 1
    if platform not in DECODE_KERNELS or (platform == "gpu" and several and q_BTHd.dtype not in DTYPES):
        keys, values = cache.pages
        cached = gather_pages(keys[layer], values[layer], cache.table)
        new = tuple(x.transpose(axes) for x, axes in zip(new, CACHED_ORDER, strict=True))
        return cached_attention(q_BTHd, cached, cache.lengths, new, visible_BTN)
    attend = _prefill if several else _decode

    def run(q_BTHd, cache, new, visible_BTN):
        return attend(platform, q_BTHd, cache, layer, new, visible_BTN, **options)

    tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    if tensor > 1:
        heads = "tensor" if cache.pages[0].shape[3] % tensor == 0 else None
        queries, pool = P(None, None, heads), P(None, None, None, heads)
        in_specs = queries, Cache((pool, pool), P(), P()), (queries, queries), P()
        run = jax.shard_map(run, in_specs=in_specs, out_specs=queries, check_vma=False)
    return run(q_BTHd, cache, new, visible_BTN)


def _decode(platform, q_BTHd, cache, layer, new, visible_BTN, **options):
    pages, table_BW, lengths_B = cache
    kernel = DECODE_KERNELS[platform]
    return kernel(q_BTHd[:, 0], pages, layer, table_BW, lengths_B, new, visible_BTN[0, 0], **options)[:, None]


def _prefill(platform, q_BTHd, cache, layer, new, visible_BTN, **options):
    del visible_BTN
    pages, table_BW, lengths_B = cache
    B, T = q_BTHd.shape[:2]
    olds = (x[layer, table_BW].reshape(B, -1, *x.shape[3:]) for x in pages)
    k, v = (jnp.concatenate([old, x], axis=1).astype(q_BTHd.dtype) for old, x in zip(olds, new, strict=True))
    exist_BS = jnp.arange(k.shape[1] - T) < lengths_B[:, None]
    if platform == "gpu":
        return cudnn_chunk_attention(q_BTHd, k, v, exist_BS, **options)
    ones_BT = jnp.ones((B, T), jnp.int32)
    segments = ones_BT, jnp.concatenate([exist_BS.astype(jnp.int32), ones_BT], axis=1)
    return splash_attention(q_BTHd, k, v, segments, **options)


def gather_pages(keys_PpKd: jax.Array, values_PpKd: jax.Array, table_BW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each sequence's cache in one piece: keys [B, K, W, d, p] and values [B, K, W * p, d].

    keys, values: [P, p, K, d], the pages of one layer. table: int32 [B, W], page numbers.
    """
    (B, W), (_, p, K, d) = table_BW.shape, keys_PpKd.shape
    values_BSKd = values_PpKd[table_BW].reshape(B, W * p, K, d)
    return keys_PpKd[table_BW].transpose(0, 3, 1, 4, 2), values_BSKd.transpose(0, 2, 1, 3)


def cached_attention(
    q_BTHd: jax.Array,
    cached: tuple[jax.Array, jax.Array],
    lengths_B: jax.Array,
    new: tuple[jax.Array, jax.Array],
    visible_BTN: jax.Array,
) -> jax.Array:
    """Grouped-query attention over cached and new tokens, one softmax over both, in float32.

    q: [B, T, H, d]. cached: as `gather_pages` returns it, the first `lengths`, int32 [B], tokens of which exist.
    new: keys [B, K, d, N] and values [B, K, N, d], which query t sees where `visible`, bool [B or 1, T, N], says so.
    Every query must see something. Returns [B, T, H, d] in q's dtype.
    """
    B, T, H, d = q_BTHd.shape
    K, S = cached[1].shape[1:3]
    M, f32 = T * (H // K), jnp.float32
    q_BKMd = q_BTHd.reshape(B, T, K, H // K, d).transpose(0, 2, 1, 3, 4).reshape(B, K, M, d)

    def scores(k_BKWdp, visible_BTS):
        W, p = k_BKWdp.shape[2], k_BKWdp.shape[4]
        q_BKWMd = jnp.broadcast_to(q_BKMd[:, :, None], (B, K, W, M, d))
        s_BKWMp = jnp.einsum("BKWMd,BKWdp->BKWMp", q_BKWMd, k_BKWdp.astype(q_BTHd.dtype), preferred_element_type=f32)
        s_BKMS = s_BKWMp.transpose(0, 1, 3, 2, 4).reshape(B, K, M, W * p)
        visible_BMS = visible_BTS if visible_BTS.shape[1] == 1 else jnp.repeat(visible_BTS, H // K, axis=1)
        return jnp.where(visible_BMS[:, None], s_BKMS * d**-0.5, -1e30)

    s_cached = scores(cached[0], (jnp.arange(S) < lengths_B[:, None])[:, None])
    s_new = scores(new[0][:, :, None], visible_BTN)
    top_BKM = jnp.maximum(jnp.max(s_cached, axis=-1, initial=-1e30), jnp.max(s_new, axis=-1))
    w_cached, w_new = jnp.exp(s_cached - top_BKM[..., None]), jnp.exp(s_new - top_BKM[..., None])
    total_BKM = jnp.sum(w_cached, axis=-1) + jnp.sum(w_new, axis=-1)

    def mix(w_BKMS, v_BKSd):
        w_BKMS, v_BKSd = w_BKMS.astype(q_BTHd.dtype), v_BKSd.astype(q_BTHd.dtype)
        return jnp.einsum("BKMS,BKSd->BKMd", w_BKMS, v_BKSd, preferred_element_type=f32)

    out_BKMd = (mix(w_cached, cached[1]) + mix(w_new, new[1])) / total_BKM[..., None]
    return out_BKMd.astype(q_BTHd.dtype).reshape(B, K, T, H // K, d).transpose(0, 2, 1, 3, 4).reshape(B, T, H, d)
