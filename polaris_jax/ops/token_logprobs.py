"""Log-probability and entropy of each token from hidden states, a chunk of tokens at a time: no [B, T, V] array."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from polaris_jax.ops.matmul import matmul

ROWS = ("data", "fsdp", "context")  # mesh axes that the tokens are split over
UNKNOWN = -1e30  # logit of what cannot be: finite, so that its share of the entropy is 0 times it and not NaN
CHUNK_LOGITS = 2**25  # float32 logits held at once, 128 MiB, on each device


def token_logprobs(
    hidden_BTD: jax.Array,
    unembedding_VD: jax.Array,
    targets_BT: jax.Array,
    temperature: jax.Array | float = 1.0,
    *,
    trained: tuple[jax.Array, int] | None = None,
    known: int = 0,
    mesh: Mesh | None = None,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """log p(target) and the entropy of softmax(logits / temperature), both float32 [B, T], in nats.

    hidden_BTD: [B, T, D] in the compute dtype; unembedding_VD: float32 [V, D]; targets_BT: int32 [B, T]. Logits are
    accumulated and kept in float32. Both results are differentiable; the backward pass recomputes a chunk's logits.
    trained: a mask [B, T] and a number: that many tokens are looked at on each device, its first where the mask is not
    0; where that is not all of them, both results are 0 for the others. None: all tokens are.
    known: ids from there on are no part of the softmax; 0: all are.
    mesh: shards B over data and fsdp, T over context, V over tensor, as in `sharding/rules.py`; None: one device.
    chunk: tokens on each device whose logits exist at once; None: so many that they are `CHUNK_LOGITS` in all.
    """
    temperature = jnp.asarray(temperature, jnp.float32)
    mask_BT, count = trained or (jnp.ones(targets_BT.shape), None)
    shard, rows = _Shard(count, known, chunk, None), P(ROWS[:2], ROWS[2])
    run = partial(_device_logprobs, shard=shard)
    if mesh is not None and mesh.size > 1:
        run, places = partial(run, shard=shard._replace(axis="tensor")), (rows, P("tensor"), rows, P(), rows)
        run = jax.shard_map(run, mesh=mesh, in_specs=places, out_specs=(rows, rows))
    return run(hidden_BTD, unembedding_VD, targets_BT, temperature, mask_BT)


class _Shard(NamedTuple):
    """What each device does: as in `token_logprobs`. axis: the mesh axis that the vocabulary is split over, or None."""

    trained: int | None
    known: int
    chunk: int | None
    axis: str | None


def _device_logprobs(hidden_BTD, unembedding_VD, targets_BT, temperature, mask_BT, *, shard):
    """One device's tokens."""
    trained, known, chunk, axis = shard
    hidden_ND, targets_N = hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), targets_BT.reshape(-1)
    body = partial(_chunk_logprobs, temperature=temperature, known=known, axis=axis)
    flat = partial(_flat_logprobs, unembedding_VD=unembedding_VD, body=body, chunk=chunk, axis=axis)
    tokens = targets_N.size
    if trained is None or trained == tokens:
        outs = flat(hidden_ND, targets_N)
    else:
        (chosen_S,) = jnp.nonzero(mask_BT.reshape(-1), size=trained, fill_value=tokens)
        chosen = partial(jnp.take, indices=chosen_S, axis=0, mode="fill", fill_value=0)
        hidden_SD, targets_S = chosen(hidden_ND), chosen(targets_N)
        zeros_N = jnp.zeros(tokens, jnp.float32)
        outs = (zeros_N.at[chosen_S].set(x_S, mode="drop") for x_S in flat(hidden_SD, targets_S))
    logprobs_N, entropy_N = outs
    return logprobs_N.reshape(targets_BT.shape), entropy_N.reshape(targets_BT.shape)


def _flat_logprobs(hidden_ND, targets_N, *, unembedding_VD, body, chunk, axis):
    V, D = unembedding_VD.shape
    tokens = len(targets_N)
    chunks = math.ceil(tokens / (chunk or max(1, CHUNK_LOGITS // V)))
    size = math.ceil(tokens / chunks)
    kernel_VD = unembedding_VD.astype(hidden_ND.dtype)
    if axis is not None:
        kernel_VD = jax.lax.pcast(kernel_VD, ROWS, to="varying")
    body = partial(body, kernel_VD=kernel_VD)
    if chunks == 1:
        return body((hidden_ND, targets_N))
    padding = chunks * size - tokens
    hidden_CND = jnp.pad(hidden_ND, ((0, padding), (0, 0))).reshape(chunks, size, D)
    targets_CN = jnp.pad(targets_N, (0, padding)).reshape(chunks, size)
    outs = jax.lax.map(jax.checkpoint(body, prevent_cse=False), (hidden_CND, targets_CN))
    return tuple(x_CN.reshape(-1)[:tokens] for x_CN in outs)


def _chunk_logprobs(inputs, *, kernel_VD, temperature, known, axis):
    hidden_ND, targets_N = inputs
    V, first = kernel_VD.shape[0], 0  # rows of this shard, and the id of its first
    if axis is not None:
        hidden_ND = jax.lax.pcast(hidden_ND, axis, to="varying")  # the gradient is summed over it
        first = jax.lax.axis_index(axis) * V
        targets_N = targets_N - first
    logits_NV = matmul(hidden_ND, kernel_VD.mT, "float32") / temperature
    if known:
        logits_NV = jnp.where(first + jnp.arange(V) < known, logits_NV, UNKNOWN)
    largest_N = jax.lax.stop_gradient(logits_NV.max(axis=-1))
    if axis is not None:
        largest_N = jax.lax.pmax(largest_N, axis)
    logits_NV = logits_NV - largest_N[:, None]
    exp_NV = jnp.exp(logits_NV)
    sums = (exp_NV.sum(-1), (exp_NV * logits_NV).sum(-1), _chosen(logits_NV, targets_N))
    if axis is not None:
        sums = jax.lax.psum(sums, axis)
    total_N, weighted_N, chosen_N = sums
    log_total_N = jnp.log(total_N)
    return chosen_N - log_total_N, log_total_N - weighted_N / total_N


@jax.custom_vjp
def _chosen(logits_NV, targets_N):
    """The targets' logits, 0 where another shard has the target; for the gradient no array is scattered into."""
    places = jnp.arange(len(targets_N)), targets_N
    return logits_NV.at[places].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def _chosen_forward(logits_NV, targets_N):
    return _chosen(logits_NV, targets_N), (targets_N, logits_NV[:0])


def _chosen_backward(saved, d_N):
    targets_N, empty_0V = saved
    return jnp.where(jax.nn.one_hot(targets_N, empty_0V.shape[1], dtype=jnp.bool_), d_N[:, None], 0), None


_chosen.defvjp(_chosen_forward, _chosen_backward)
