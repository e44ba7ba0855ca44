"""Log-probability and entropy of each token from hidden states, a chunk of tokens at a time: no [B, T, V] array."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from polaris_jax.ops.matmul import matmul

CHUNK_LOGITS = 2**25  # float32 logits held at once, 128 MiB, on each device


def token_logprobs(
    hidden_BTD: jax.Array,
    unembedding_VD: jax.Array,
    targets_BT: jax.Array,
    temperature: jax.Array | float = 1.0,
    *,
    mesh: Mesh | None = None,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """log p(target) and the entropy of softmax(logits / temperature), both float32 [B, T], in nats.

    hidden_BTD: [B, T, D] in the compute dtype; unembedding_VD: float32 [V, D]; targets_BT: int32 [B, T]. Logits are
    accumulated and kept in float32. Both results are differentiable; the backward pass recomputes a chunk's logits.
    mesh: shards B over data and fsdp, T over context, V over tensor, as in `sharding/rules.py`; None: one device.
    chunk: tokens on each device whose logits exist at once; None: so many that they are `CHUNK_LOGITS` in all.
    """
    temperature = jnp.asarray(temperature, jnp.float32)
    if mesh is None or mesh.size == 1:
        return _flat_logprobs(hidden_BTD, unembedding_VD, targets_BT, temperature, chunk=chunk, axis=None)
    rows = P(("data", "fsdp"), "context")
    run = partial(_flat_logprobs, chunk=chunk, axis="tensor")
    sharded = jax.shard_map(run, mesh=mesh, in_specs=(rows, P("tensor"), rows, P()), out_specs=(rows, rows))
    return sharded(hidden_BTD, unembedding_VD, targets_BT, temperature)


def _flat_logprobs(hidden_BTD, unembedding_VD, targets_BT, temperature, *, chunk, axis):
    """One device's tokens, flattened; `axis` is the mesh axis the vocabulary is split over."""
    V, D = unembedding_VD.shape
    tokens = targets_BT.size
    chunks = math.ceil(tokens / (chunk or max(1, CHUNK_LOGITS // V)))
    size = math.ceil(tokens / chunks)
    kernel_VD = unembedding_VD.astype(hidden_BTD.dtype)
    body = partial(_chunk_logprobs, kernel_VD=kernel_VD, temperature=temperature, axis=axis)
    hidden_ND, targets_N = hidden_BTD.reshape(tokens, D), targets_BT.reshape(tokens)
    if chunks == 1:
        logprobs_N, entropy_N = body((hidden_ND, targets_N))
    else:
        padding = chunks * size - tokens
        hidden_CND = jnp.pad(hidden_ND, ((0, padding), (0, 0))).reshape(chunks, size, D)
        targets_CN = jnp.pad(targets_N, (0, padding)).reshape(chunks, size)
        logprobs_CN, entropy_CN = jax.lax.map(jax.checkpoint(body, prevent_cse=False), (hidden_CND, targets_CN))
        logprobs_N, entropy_N = logprobs_CN.reshape(-1)[:tokens], entropy_CN.reshape(-1)[:tokens]
    return logprobs_N.reshape(targets_BT.shape), entropy_N.reshape(targets_BT.shape)


def _chunk_logprobs(inputs, *, kernel_VD, temperature, axis):
    hidden_ND, targets_N = inputs
    logits_NV = matmul(hidden_ND, kernel_VD.mT, "float32") / temperature
    if axis is not None:
        targets_N = targets_N - jax.lax.axis_index(axis) * kernel_VD.shape[0]
    one_hot_NV = jax.nn.one_hot(targets_N, kernel_VD.shape[0], dtype=jnp.bool_)  # all false where another shard has it
    largest_N = jax.lax.stop_gradient(logits_NV.max(axis=-1))
    if axis is not None:
        largest_N = jax.lax.pmax(largest_N, axis)
    logits_NV = logits_NV - largest_N[:, None]
    exp_NV = jnp.exp(logits_NV)
    sums = (exp_NV.sum(-1), (exp_NV * logits_NV).sum(-1), jnp.where(one_hot_NV, logits_NV, 0).sum(-1))
    if axis is not None:
        sums = jax.lax.psum(sums, axis)
    total_N, weighted_N, chosen_N = sums
    log_total_N = jnp.log(total_N)
    return chosen_N - log_total_N, log_total_N - weighted_N / total_N
