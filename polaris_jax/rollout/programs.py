"""What runs on the devices: prefill of prompt chunks, copies of pages, and K decoding steps in one call.

The page pool is read-only while layers and steps run: new keys and values collect in a small buffer that attention sees
beside the cached ones, and are written to their pages once, at the end of the call.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import UNROLLED_LAYERS, Transformer, unembed, unembedding
from polaris_jax.ops.paged_attention import Pages, cached_attention, gather_pages, paged_attention
from polaris_jax.rollout.sampling import Drawn, Sampling, next_token
from polaris_jax.sharding.rules import RULES


class Rows(NamedTuple):
    """The decoding sequences, one a row; R rows, numpy or jax.

    tokens: int32 [R], the newest, not in the cache yet. cached: int32 [R], tokens in the cache. produced: int32 [R],
    response tokens so far. limits: int32 [R], most response tokens; rows of padding have produced = limit.
    keys: uint32 [R, 2]. table: int32 [R, W], pages of the cached tokens. write: int32 [R, n], the pages from the one
    of position `cached` on, null where there are none.
    """

    tokens: Any
    cached: Any
    produced: Any
    limits: Any
    keys: Any
    table: Any
    write: Any


class Decoded(NamedTuple):
    """drawn: `Drawn` with leading axes [steps, R], valid for the first `counts`, int32 [R], steps of each row.

    stopped: bool [R], the last of them is a stop token.
    """

    drawn: Drawn
    counts: jax.Array
    stopped: jax.Array


def apply_model(model: ModelConfig, params: Any, attend: Any, tokens_BT, positions_BT, cache: Any) -> tuple[Any, Any]:
    """Hidden states [B, T, D] and the cache, from the trainer's module with another attention."""
    if isinstance(jax.tree.leaves(params["layers"], is_leaf=lambda x: isinstance(x, list))[0], list):
        params = params | {"layers": jax.tree.map(jnp.stack, params["layers"], is_leaf=lambda x: isinstance(x, list))}
    with nn.logical_axis_rules(RULES):
        segments_BT = jnp.ones_like(tokens_BT)
        return Transformer(model, attend).apply({"params": params}, tokens_BT, positions_BT, segments_BT, cache)


def prefill(
    model: ModelConfig, platform: str, params: Any, pages: Pages, tokens_BT, starts_B, counts_B, table_BW, write_Bn
) -> Pages:
    """The pool with keys and values of the chunks: `counts` tokens from position `starts`, after what `table` holds.

    starts and T are multiples of the page size; write: int32 [B, T / p], where the chunk's pages go, null for none.
    """
    B, T = tokens_BT.shape
    step_T = jnp.arange(T)
    visible_1TT = (step_T[:, None] >= step_T)[None]

    def attend(q, k, v, positions, segments, new, layer):
        new = _put(new, k, v, layer, 0)
        fresh = new[0][layer], new[1][layer]
        return paged_attention(platform, q, pages, layer, table_BW, starts_B, fresh, visible_1TT), new

    _, new = apply_model(model, params, attend, tokens_BT, starts_B[:, None] + step_T, _buffers(pages, B, T))
    return tuple(
        x.at[:, write_Bn.reshape(-1)].set(y.reshape(x.shape[0], -1, *x.shape[2:]))
        for x, y in zip(pages, _as_pages(new), strict=True)
    )


def copy_pages(pages: Pages, sources: jax.Array, targets: jax.Array) -> Pages:
    """The pool with pages copied. sources, targets: int32 [n]; null to null is padding."""
    return tuple(x.at[:, targets].set(x[:, sources]) for x in pages)


def decode(
    model: ModelConfig, sampling: Sampling, steps: int, roomy: bool, platform: str, params: Any, pages: Pages,
    rows: Rows, stop_ids: jax.Array, temperature: jax.Array, top_p: jax.Array, prefix: jax.Array, patience: jax.Array,
) -> tuple[Pages, Decoded]:  # fmt: skip
    """Up to `steps` tokens for each row; returns early once more than `patience` rows are through in this call.

    platform: whose kernels to run. roomy: spend memory on speed, for CPUs: what every step reads (the rows' pages, the
    weights of each layer, the transposed unembedding) is copied into one piece before the first step.
    """
    R = rows.tokens.shape[0]
    step_N = jnp.arange(steps)
    scorer_VD = unembedding(params, model)
    if roomy:
        params, scorer_VD = _in_pieces(model, params)
        cached = [gather_pages(pages[0][i], pages[1][i], rows.table) for i in range(model.num_hidden_layers)]

    def forward(step, tokens_R, new):
        def attend(q, k, v, positions, segments, new, layer):
            new = _put(new, k, v, layer, step)
            fresh = new[0][layer], new[1][layer]
            visible_1TN = (step_N <= step)[None, None]
            if roomy:  # a switch rather than an index, which would copy the layer's cache
                branches = [partial(cached_attention, cached=c, lengths_B=rows.cached) for c in cached]
                return jax.lax.switch(
                    layer, [lambda q, new, f=f: f(q, new=new, visible_BTN=visible_1TN) for f in branches], q, fresh
                ), new
            return paged_attention(platform, q, pages, layer, rows.table, rows.cached, fresh, visible_1TN), new

        hidden, new = apply_model(model, params, attend, tokens_R[:, None], (rows.cached + step)[:, None], new)
        return unembed(hidden[:, 0], scorer_VD), new

    def body(state):
        step, tokens_R, new, drawn, counts_R, stopped_R = state
        logits_RV, new = forward(step, tokens_R, new)
        positions_R = rows.produced + counts_R
        now = next_token(logits_RV, rows.keys, positions_R, sampling, temperature, top_p, prefix)
        active_R = ~stopped_R & (positions_R < rows.limits)
        counts_R = counts_R + active_R
        stop_R = jnp.isin(now.tokens, stop_ids) & (positions_R >= len(sampling.prefix))
        drawn = jax.tree.map(lambda all_, x: all_.at[step].set(x), drawn, now)
        return step + 1, now.tokens, new, drawn, counts_R, stopped_R | (active_R & stop_R)

    def going(state):
        step, _, _, _, counts_R, stopped_R = state
        through_R = stopped_R | (rows.produced + counts_R >= rows.limits)
        return (step < steps) & (jnp.sum(through_R & (rows.produced < rows.limits)) <= patience) & ~jnp.all(through_R)

    new = _buffers(pages, R, steps)
    shapes = jax.eval_shape(
        lambda: next_token(
            jnp.zeros((R, model.vocab_size)), rows.keys, rows.produced, sampling, temperature, top_p, prefix
        )
    )
    drawn = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), shapes)
    state = (0, jnp.asarray(rows.tokens), new, drawn, jnp.zeros(R, jnp.int32), jnp.zeros(R, bool))
    _, _, new, drawn, counts_R, stopped_R = jax.lax.while_loop(going, body, state)
    return _write(pages, new, rows), Decoded(drawn, counts_R, stopped_R)


def _in_pieces(model: ModelConfig, params: Any) -> tuple[Any, jax.Array]:
    """Parameters whose layers lie apart, and the unembedding [V, D] stored as [D, V].

    XLA resolves the slice of a concatenation, so an unrolled loop over layers reads the pieces and copies nothing.
    """
    scorer_VD = jax.lax.optimization_barrier(unembedding(params, model).T).T
    L = model.num_hidden_layers
    if L <= UNROLLED_LAYERS:
        apart = jax.tree.map(lambda x: jax.lax.optimization_barrier([x[i] for i in range(L)]), params["layers"])
        params = params | {"layers": apart}
    return params, scorer_VD


def _buffers(pages: Pages, B: int, N: int) -> Pages:
    """Room for N new tokens of B rows: keys [L, B, K, d, N] and values [L, B, K, N, d]."""
    L, _, _, K, d = pages[0].shape
    return jnp.zeros((L, B, K, d, N), pages[0].dtype), jnp.zeros((L, B, K, N, d), pages[1].dtype)


def _put(new: Pages, k_BTKd: jax.Array, v_BTKd: jax.Array, layer: jax.Array, step: jax.Array | int) -> Pages:
    """The buffers with a layer's keys and values from `step` on."""
    k, v = k_BTKd.transpose(0, 2, 3, 1)[None], v_BTKd.transpose(0, 2, 1, 3)[None]
    return (
        jax.lax.dynamic_update_slice(new[0], k.astype(new[0].dtype), (layer, 0, 0, 0, step)),
        jax.lax.dynamic_update_slice(new[1], v.astype(new[1].dtype), (layer, 0, 0, step, 0)),
    )


def _as_pages(new: Pages) -> Pages:
    """The buffers as pages lay them out, [L, B, N, K, d]."""
    return new[0].transpose(0, 1, 4, 2, 3), new[1].transpose(0, 1, 3, 2, 4)


def _write(pages: Pages, new: Pages, rows: Rows) -> Pages:
    """The pool with each row's new keys and values at the positions from `cached` on."""
    page_size, N = pages[0].shape[2], new[0].shape[4]
    place_RN = rows.cached[:, None] % page_size + jnp.arange(N)
    page_RN = jnp.take_along_axis(jnp.asarray(rows.write), place_RN // page_size, axis=1)
    return tuple(x.at[:, page_RN, place_RN % page_size].set(y) for x, y in zip(pages, _as_pages(new), strict=True))
