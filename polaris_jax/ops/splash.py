"""Attention over whole sequences on TPUs: Splash attention, which never holds the scores, forward or backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from polaris_jax.errors import UserError

BLOCKS = (512, 256, 128)  # queries, and keys, at once: the largest that divides


def splash_attention(
    q_BTHd: jax.Array,
    k_BSKd: jax.Array,
    v_BSKd: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    *,
    part: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Causal grouped-query attention within segments; returns [B, T, H, d] in q's dtype, differentiable.

    segments: ids int32 of the queries [B, T] and of the keys [B, S]. The queries are the last T of the S slots, or,
    where `part`, int32 scalar, is given, that one of the S / T equal parts. A query sees keys of its segment up to its
    own slot, and must see one. Raises UserError where parts cannot be cut into blocks.
    """
    _, T, H, d = q_BTHd.shape
    S = k_BSKd.shape[1]
    if part is not None and T % BLOCKS[-1]:
        raise UserError(
            f"config.updates.row_lengths: {S} over mesh.context={S // T} gives parts of {T}; TPUs need a multiple of "
            f"{BLOCKS[-1]} each"
        )
    offset = S - T if part is None else 0
    # A padded query has the segment of the last real one, and so sees something; padded keys come after all real ones.
    q_BTHd, q_segments_BT = _pad(q_BTHd * d**-0.5), _pad(segments[0], "edge")
    k_BSKd, v_BSKd, k_segments_BS = _pad(k_BSKd), _pad(v_BSKd), _pad(segments[1])
    padded_T, padded_S = q_BTHd.shape[1], k_BSKd.shape[1]
    mask = masks.CausalMask((padded_T if part is None else padded_S, padded_S), offset)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * H),
        block_sizes=_block_sizes(padded_T, padded_S),
        head_shards=1,
        q_seq_shards=1 if part is None else S // T,
        interpret=interpret,
    )
    if part is not None:
        kernel = _of_part(kernel, part, S // T)
    heads_first = (x.transpose(0, 2, 1, 3) for x in (q_BTHd, k_BSKd, v_BSKd))
    out_BHTd = jax.vmap(kernel)(*heads_first, splash.SegmentIds(q_segments_BT, k_segments_BS))
    return out_BHTd.transpose(0, 2, 1, 3)[:, :T]


def _pad(x: jax.Array, mode: str = "constant") -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, -x.shape[1] % BLOCKS[-1])
    return jnp.pad(x, widths, mode)


def _block_sizes(T: int, S: int) -> splash.BlockSizes:
    q, kv = (next(size for size in BLOCKS if length % size == 0) for length in (T, S))
    return splash.BlockSizes(
        block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv, block_q_dq=q, block_kv_dq=kv
    )


def _of_part(kernel: splash.SplashAttentionKernel, part: jax.Array, parts: int) -> splash.SplashAttentionKernel:
    """The kernel with the mask of one part of the queries, as sharding it over the mesh would leave it there."""

    def cut(x: jax.Array, axis: int) -> jax.Array:
        size = x.shape[axis] // parts
        return jax.lax.dynamic_slice_in_dim(x, part * size, size, axis)

    return jax.tree.map(lambda x: cut(x, 0 if x.ndim == 1 else 1), kernel)
