"""Attention over whole (packed) sequences: the portable version that kernels are compared with, for any row length."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from polaris_jax.ops.blockwise_attention import blockwise_attention
from polaris_jax.ops.cudnn import DTYPES, cudnn_context_attention
from polaris_jax.ops.matmul import matmul
from polaris_jax.ops.splash import splash_attention

DENSE = 768  # rows up to this long keep their scores for the backward pass, longer ones go block by block
CAUSAL_BLOCKS = (4, 2)  # of a dense row, the first that fits: queries of a block see no key of a later block
HIDDEN = -1e30  # added to a score that must not be seen


def packed_attention(
    q_BTHd: jax.Array,
    k_BTKd: jax.Array,
    v_BTKd: jax.Array,
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array,
    cache: Any = None,
    layer: Any = None,
) -> tuple[jax.Array, Any]:
    """Causal grouped-query attention within segments, softmax in float32.

    q [B, T, H, d]; k, v [B, T, K, d] with H a multiple of K; positions and segment ids int32 [B, T], a segment's slots
    side by side and its positions counting from 0. A token sees the tokens of its own segment at positions up to its
    own; segment 0 is padding and its output is to be ignored. Returns [B, T, H, d] in q's dtype, and the cache
    untouched. Memory is linear in T.
    """
    del layer
    tokens = positions_BT, segment_ids_BT
    return _attend(q_BTHd, k_BTKd, v_BTKd, tokens, tokens, 0), cache


def sharded_attention(mesh: Mesh) -> Callable:
    """`packed_attention` on rows laid over `mesh`: B over data and fsdp, heads over tensor, T over context.

    Each context shard gathers the keys and values of its whole rows, and keeps its own queries (arXiv 2407.21783,
    section 3.3.2). Heads are replicated where `tensor` does not divide the kv heads. On TPUs and GPUs it is a kernel;
    on GPUs a row must hold one sequence, see `ops/cudnn.py`.
    """
    platform = mesh.devices.flat[0].platform
    if mesh.size == 1 and platform == "cpu":
        return packed_attention

    def attend(q_BTHd, k_BTKd, v_BTKd, positions_BT, segment_ids_BT, cache=None, layer=None):
        del layer
        heads = "tensor" if k_BTKd.shape[2] % mesh.shape["tensor"] == 0 else None
        rows, arrays = P(("data", "fsdp"), "context"), P(("data", "fsdp"), "context", heads)
        run = jax.shard_map(
            SHARDS[platform],
            mesh=mesh,
            in_specs=(arrays, arrays, arrays, rows, rows),
            out_specs=arrays,
            check_vma=False,
        )
        return run(q_BTHd, k_BTKd, v_BTKd, positions_BT, segment_ids_BT), cache

    return attend


def alone_in_rows(mesh: Mesh, dtype: str) -> bool:
    """Whether the kernel of `mesh` for queries of `dtype` knows no segments, so that a row must hold one sequence."""
    return SHARDS[mesh.devices.flat[0].platform] is _cudnn_shard and dtype in DTYPES


def _attend_shard(q_BTHd, k_BTKd, v_BTKd, positions_BT, segment_ids_BT):
    gather = partial(jax.lax.all_gather, axis_name="context", axis=1, tiled=True)
    start = jax.lax.axis_index("context") * q_BTHd.shape[1]
    keys = gather(positions_BT), gather(segment_ids_BT)
    return _attend(q_BTHd, gather(k_BTKd), gather(v_BTKd), (positions_BT, segment_ids_BT), keys, start)


def _splash_shard(q_BTHd, k_BTKd, v_BTKd, positions_BT, segment_ids_BT):
    gather = partial(jax.lax.all_gather, axis_name="context", axis=1, tiled=True)
    part = jax.lax.axis_index("context") if jax.lax.axis_size("context") > 1 else None
    segments = segment_ids_BT, gather(segment_ids_BT)
    return splash_attention(q_BTHd, gather(k_BTKd), gather(v_BTKd), segments, part=part)


def _cudnn_shard(q_BTHd, k_BTKd, v_BTKd, positions_BT, segment_ids_BT):
    if q_BTHd.dtype not in DTYPES:
        return _attend_shard(q_BTHd, k_BTKd, v_BTKd, positions_BT, segment_ids_BT)
    return cudnn_context_attention(q_BTHd, k_BTKd, v_BTKd, segment_ids_BT)


SHARDS = {"cpu": _attend_shard, "tpu": _splash_shard, "gpu": _cudnn_shard}  # by platform, inside shard_map


def _attend(q_BTHd, k_BSKd, v_BSKd, q_tokens, k_tokens, start):
    """q_tokens, k_tokens: (positions, segment ids). start: slot of the first query among the keys."""
    B, T, H, d = q_BTHd.shape
    S, K = k_BSKd.shape[1:3]
    q_BKGTd = (q_BTHd * d**-0.5).reshape(B, T, K, H // K, d).transpose(0, 2, 3, 1, 4)
    k_BKSd, v_BKSd = k_BSKd.transpose(0, 2, 1, 3), v_BSKd.transpose(0, 2, 1, 3)
    if S > DENSE:
        out_BKGTd = blockwise_attention(q_BKGTd, k_BKSd, v_BKSd, q_tokens, k_tokens, start)
    else:
        bias_BTS = jnp.where(visible(q_tokens, k_tokens), 0.0, HIDDEN)
        blocks = next((n for n in CAUSAL_BLOCKS if S == T and T % (16 * n) == 0), 1)
        size, parts = T // blocks, []
        for i, q_BKGtd in enumerate(jax.lax.split(q_BKGTd, [size] * blocks, axis=3)):
            end = (i + 1) * size
            queries, seen = slice(end - size, end), slice(0, end if blocks > 1 else S)
            bias_BtS = bias_BTS[:, queries, seen]
            parts.append(_dense(q_BKGtd, k_BKSd[:, :, seen], v_BKSd[:, :, seen], bias_BtS))
        out_BKGTd = jnp.concatenate(parts, axis=3)
    return out_BKGTd.transpose(0, 3, 1, 2, 4).reshape(B, T, H, d)


def visible(q_tokens: tuple, k_tokens: tuple) -> jax.Array:
    """Bool [B, T, S]: which key each query may see. Both arguments are (positions, segment ids), int32 [B, ...]."""
    (q_positions_BT, q_segments_BT), (k_positions_BS, k_segments_BS) = q_tokens, k_tokens
    same = q_segments_BT[:, :, None] == k_segments_BS[:, None, :]
    return same & (q_positions_BT[:, :, None] >= k_positions_BS[:, None, :])


def _dense(q_BKGTd, k_BKSd, v_BKSd, bias_BTS):
    """The softmax is normalised after the product with v, so that no pass over the scores is needed for it."""
    B, K, G, T, d = q_BKGTd.shape
    scores_BKNS = matmul(q_BKGTd.reshape(B, K, G * T, d), k_BKSd.mT, "float32")
    scores_BKGTS = scores_BKNS.reshape(B, K, G, T, -1) + bias_BTS[:, None, None]
    largest_BKGT1 = jax.lax.stop_gradient(scores_BKGTS.max(axis=-1, keepdims=True))
    weights_BKGTS = jnp.exp(scores_BKGTS - largest_BKGT1)
    total_BKGT1 = weights_BKGTS.sum(axis=-1, keepdims=True)
    weights_BKNS = weights_BKGTS.astype(v_BKSd.dtype).reshape(B, K, G * T, -1)
    out_BKNd = matmul(weights_BKNS, v_BKSd, "float32")
    return (out_BKNd.reshape(B, K, G, T, d) / total_BKGT1).astype(q_BKGTd.dtype)
