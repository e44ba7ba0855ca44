"""Log-probability and entropy of each token from hidden states, a chunk of tokens at a time: no [B, T, V] array."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from polaris_jax.ops.matmul import matmul, transposed_matmul

ROWS = ("data", "fsdp", "context")  # mesh axes that the tokens are split over
UNKNOWN = -1e30  # logit of what cannot be: finite, so that its share of the entropy is 0 times it and not NaN
CHUNK_LOGITS = 2**27  # float32 logits held at once, 512 MiB, on each device
CHUNKS = 8  # at least so many, so that a device whose tokens are few computes for few more


def token_logprobs(
    hidden_BTD: jax.Array,
    unembedding_VD: jax.Array,
    targets_BT: jax.Array,
    temperature: jax.Array | float = 1.0,
    *,
    mask_BT: jax.Array | None = None,
    known: int = 0,
    mesh: Mesh | None = None,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """log p(target) and the entropy of softmax(logits / temperature), both float32 [B, T], in nats.

    hidden_BTD: [B, T, D] in the compute dtype; unembedding_VD: float32 [V, D]; targets_BT: int32 [B, T]. Products are
    of arrays in the compute dtype; logits, and the unembedding's gradient over all chunks, are summed in float32. Both
    results can be differentiated by hidden states and unembedding, not by the temperature.
    mask_BT: both results are 0 for tokens where it is 0, and nothing is computed for them but what fills up the last
    chunk, so the number of chunks is known only when the program runs. None: all tokens are looked at.
    known: ids from there on are no part of the softmax; 0: all are.
    mesh: shards B over data and fsdp, T over context, V over tensor, as in `sharding/rules.py`; None: one device.
    chunk: tokens on each device whose logits exist at once; None: so many that they are `CHUNK_LOGITS` at most. Where
    all tokens are no more than that, their logits are kept for the backward pass; else it computes them again.
    """
    mask_BT = jnp.ones(targets_BT.shape) if mask_BT is None else mask_BT
    run, rows = partial(_device_logprobs, known=known, chunk=chunk), P(ROWS[:2], ROWS[2])
    if mesh is not None and mesh.size > 1:
        places = (rows, P("tensor"), rows, P(), rows)
        run = jax.shard_map(partial(run, axis="tensor"), mesh=mesh, in_specs=places, out_specs=(rows, rows))
    return run(*map(jnp.asarray, (hidden_BTD, unembedding_VD, targets_BT, jnp.float32(temperature), mask_BT)))


class _Loop(NamedTuple):
    """chunk: its tokens. keeps: whether logits are kept for the backward pass. known: as in `token_logprobs`.

    axis: the mesh axis that the vocabulary is split over, or None on one device.
    """

    chunk: int
    keeps: bool
    known: int
    axis: str | None


def _device_logprobs(hidden_BTD, unembedding_VD, targets_BT, temperature, mask_BT, *, known, chunk, axis=None):
    """One device's tokens: those with a mask are brought to the front, and the loop ends behind them."""
    tokens, V = targets_BT.size, len(unembedding_VD)
    most = chunk or max(1, CHUNK_LOGITS // V)
    loop = _Loop(chunk or min(most, math.ceil(tokens / CHUNKS)), tokens <= most, known, axis)
    hidden_ND, targets_N, mask_N = hidden_BTD.reshape(tokens, -1), targets_BT.reshape(-1), mask_BT.reshape(-1) > 0
    count = mask_N.sum()
    place_N = jnp.where(mask_N, jnp.cumsum(mask_N), count + jnp.cumsum(~mask_N)) - 1
    order_N = jnp.zeros_like(place_N).at[place_N].set(jnp.arange(tokens), unique_indices=True)
    if axis is not None:
        count = jax.lax.pmax(count, ROWS)  # devices that sum over `axis` go round as often, and so do all
        hidden_ND = jax.lax.pcast(hidden_ND, axis, to="varying")  # their gradients are summed over these axes
        unembedding_VD = jax.lax.pcast(unembedding_VD, ROWS, to="varying")
    outs = _loop_logprobs(loop, hidden_ND, unembedding_VD, targets_N, temperature, (order_N, place_N, count))
    return tuple(jnp.where(mask_N, x_N, 0).reshape(targets_BT.shape) for x_N in outs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop_logprobs(loop: _Loop, hidden_ND, unembedding_VD, targets_N, temperature, places):
    """Log-probs and entropies [N] of the first tokens in order. places: order [N], its inverse [N], how many of them.

    hidden varies over the mesh axes of the tokens and of the vocabulary, and so does the unembedding.
    """
    return _forward(loop, hidden_ND, unembedding_VD, targets_N, temperature, places)[0]


def _forward(loop, hidden_ND, unembedding_VD, targets_N, temperature, places):
    (order_N, place_N, count), V = places, len(unembedding_VD)
    kernel_VD, order_S = unembedding_VD.astype(hidden_ND.dtype), _padded(order_N, loop.chunk)

    def one(i, found):
        stats_3S, logits_SV = found
        index_C = _chunk(order_S, i, loop)
        logits_CV = _logits(loop, hidden_ND[index_C], kernel_VD, temperature)
        stats_3C = jnp.stack(_stats(loop, logits_CV, targets_N[index_C]))
        stats_3S = jax.lax.dynamic_update_slice(stats_3S, stats_3C, (0, i * loop.chunk))
        return stats_3S, _put(logits_SV, logits_CV, i, loop) if loop.keeps else logits_SV

    empty = jnp.zeros((3, len(order_S))), jnp.zeros((len(order_S) if loop.keeps else 0, V))
    empty = _varying(loop, empty[0], ROWS), _varying(loop, empty[1], (*ROWS, loop.axis))
    stats_3S, logits_SV = jax.lax.fori_loop(0, -(-count // loop.chunk), one, empty)
    stats_3N = stats_3S[:, place_N]
    logprobs_N, entropy_N, _ = stats_3N
    return (logprobs_N, entropy_N), (hidden_ND, unembedding_VD, targets_N, temperature, places, stats_3S, logits_SV)


def _saved(loop, *primals):
    return _forward(loop, *custom_vjp_primal_tree_values(primals))


def _backward(loop, saved, given):
    """With z the logits over the temperature, d log p(t) / dz = 1(t) - p, and d entropy / dz = -p (log p + entropy).

    What nothing is made of has no gradient and costs nothing: the entropy where it is only told.
    """
    hidden_ND, unembedding_VD, targets_N, temperature, (order_N, place_N, count), stats_3S, logits_SV = saved
    kernel_VD, order_S = unembedding_VD.astype(hidden_ND.dtype), _padded(order_N, loop.chunk)
    d_logprobs_S, d_entropy_S = (
        None if isinstance(d_N, SymbolicZero) else _padded(d_N[order_N], loop.chunk) for d_N in given
    )

    def one(i, sums):
        d_hidden_SD, d_kernel_VD = sums
        index_C = _chunk(order_S, i, loop)
        hidden_CD = hidden_ND[index_C]
        logits_CV = _chunk(logits_SV, i, loop) if loop.keeps else _logits(loop, hidden_CD, kernel_VD, temperature)
        _, entropy_C1, log_total_C1 = (_chunk(x_S, i, loop)[:, None] for x_S in stats_3S)
        logprobs_CV = logits_CV - log_total_C1
        is_target_CV = _local_targets(loop, targets_N[index_C], logits_CV)[:, None] == jnp.arange(logits_CV.shape[1])
        d_target_C1, d_all_CV = jnp.zeros_like(entropy_C1), 0.0
        if d_logprobs_S is not None:
            d_target_C1 = d_all_CV = _chunk(d_logprobs_S, i, loop)[:, None]
        if d_entropy_S is not None:
            d_all_CV += _chunk(d_entropy_S, i, loop)[:, None] * (logprobs_CV + entropy_C1)
        d_logits_CV = jnp.where(is_target_CV, d_target_C1, 0) - jnp.exp(logprobs_CV) * d_all_CV
        d_logits_CV = (d_logits_CV / temperature).astype(hidden_CD.dtype)
        d_hidden_CD = matmul(d_logits_CV, kernel_VD, hidden_CD.dtype)
        d_kernel_VD += transposed_matmul(d_logits_CV, hidden_CD)
        return _put(d_hidden_SD, d_hidden_CD, i, loop), d_kernel_VD

    empty = jnp.zeros((len(order_S), hidden_ND.shape[1]), hidden_ND.dtype), jnp.zeros(kernel_VD.shape)
    empty = tuple(_varying(loop, x, (*ROWS, loop.axis)) for x in empty)
    d_hidden_SD, d_kernel_VD = jax.lax.fori_loop(0, -(-count // loop.chunk), one, empty)
    return d_hidden_SD[place_N], d_kernel_VD, None, None, None


_loop_logprobs.defvjp(_saved, _backward, symbolic_zeros=True)


def _logits(loop, hidden_CD, kernel_VD, temperature):
    """Over the temperature, float32; of this device's part of the vocabulary."""
    logits_CV = matmul(hidden_CD, kernel_VD.mT, "float32") / temperature
    if not loop.known:
        return logits_CV
    V = logits_CV.shape[1]
    first = 0 if loop.axis is None else jax.lax.axis_index(loop.axis) * V
    return jnp.where(first + jnp.arange(V) < loop.known, logits_CV, UNKNOWN)


def _stats(loop, logits_CV, targets_C):
    """log p(target), the entropy, and the logarithm of what exp(logits) are to be divided by; each [C]."""
    largest_C = logits_CV.max(axis=-1)
    if loop.axis is not None:
        largest_C = jax.lax.pmax(largest_C, loop.axis)
    shifted_CV = logits_CV - largest_C[:, None]
    exp_CV = jnp.exp(shifted_CV)
    places = jnp.arange(len(targets_C)), _local_targets(loop, targets_C, logits_CV)
    chosen_C = shifted_CV.at[places].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    sums = exp_CV.sum(-1), (exp_CV * shifted_CV).sum(-1), chosen_C
    if loop.axis is not None:
        sums = jax.lax.psum(sums, loop.axis)
    total_C, weighted_C, chosen_C = sums
    log_total_C = jnp.log(total_C)
    return chosen_C - log_total_C, log_total_C - weighted_C / total_C, log_total_C + largest_C


def _local_targets(loop, targets_C, logits_CV):
    """Their places in this device's part of the vocabulary, outside of it where another device has them."""
    return targets_C if loop.axis is None else targets_C - jax.lax.axis_index(loop.axis) * logits_CV.shape[1]


def _varying(loop: _Loop, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return x if loop.axis is None else jax.lax.pcast(x, axes, to="varying")


def _padded(x_N: jax.Array, chunk: int) -> jax.Array:
    """[S], a multiple of the chunk."""
    return jnp.pad(x_N, (0, -len(x_N) % chunk))


def _chunk(x: Any, i: jax.Array, loop: _Loop) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, i * loop.chunk, loop.chunk)


def _put(x: jax.Array, chunk: jax.Array, i: jax.Array, loop: _Loop) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, chunk, i * loop.chunk, 0)
