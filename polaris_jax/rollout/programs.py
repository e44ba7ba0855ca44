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
from polaris_jax.models.transformer import UNROLLED_LAYERS, Transformer, unembed, unembedding, unstack
from polaris_jax.ops.paged_attention import Pages, cached_attention, gather_pages, paged_attention
from polaris_jax.rollout.sampling import Drawn, Sampling, gumbels, next_token
from polaris_jax.sharding.rules import RULES

SIDE_BY_SIDE = {"attention": ("q", "k", "v"), "mlp": ("gate", "up")}  # linear layers that share an input


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


def in_pieces(model: ModelConfig, params: Any) -> Any:
    """The sampler's parameters as a CPU reads them fastest: the unembedding also as [D, V]; where layers are few and on
    one device, each layer apart, with the kernels of one input side by side."""
    pieces = params | {"scorer_DV": unembedding(params, model).T}
    if model.num_hidden_layers > UNROLLED_LAYERS or jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1:
        return pieces
    pieces["layers"] = unstack(params["layers"])
    for layer in pieces["layers"]:
        for part, names in SIDE_BY_SIDE.items():
            joined = [layer[part].pop(name) for name in names]
            layer[part]["joined"] = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *joined)
    return pieces


def whole(model: ModelConfig, pieces: Any) -> Any:
    """The parameters again. XLA sees through concatenations of what was sliced: nothing is copied."""
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    ends = {"attention": [queries, queries + keys, None], "mlp": [model.intermediate_size, None]}

    def columns(tree, begin, end):
        return jax.tree.map(lambda x: x[..., begin:end], tree)

    def apart(layer):
        new = dict(layer)
        for part, names in SIDE_BY_SIDE.items():
            rest = dict(layer[part])
            joined, edges = rest.pop("joined"), [0, *ends[part]]
            new[part] = rest | {name: columns(joined, *edges[i : i + 2]) for i, name in enumerate(names)}
        return new

    return pieces | {"layers": jax.tree.map(lambda *x: jnp.stack(x), *map(apart, pieces["layers"]))}


def apply_model(model: ModelConfig, params: Any, attend: Any, tokens_BT, positions_BT, cache: Any) -> tuple[Any, Any]:
    """Hidden states [B, T, D] and the cache, from the trainer's module with another attention.

    params: the sampler's, also `in_pieces`.
    """
    merged = isinstance(params["layers"], list)
    if merged:
        params = whole(model, params)
    transformer, segments_BT = Transformer(model, attend, merged), jnp.ones_like(tokens_BT)
    with nn.logical_axis_rules(RULES):
        return transformer.apply({"params": params}, tokens_BT, positions_BT, segments_BT, cache)


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


def clear(pages: Pages) -> Pages:
    """The pool, empty."""
    return jax.tree.map(jnp.zeros_like, pages)


def copy_pages(pages: Pages, sources: jax.Array, targets: jax.Array) -> Pages:
    """The pool with pages copied. sources, targets: int32 [n]; null to null is padding."""
    return tuple(x.at[:, targets].set(x[:, sources]) for x in pages)


def decode(
    model: ModelConfig, sampling: Sampling, steps: int, roomy: bool, platform: str, params: Any, pages: Pages,
    rows: Rows, stop_ids: jax.Array, temperature: jax.Array, top_p: jax.Array, prefix: jax.Array, patience: jax.Array,
) -> tuple[Pages, Decoded]:  # fmt: skip
    """Up to `steps` tokens for each row; returns early once more than `patience` rows are through in this call.

    platform: whose kernels to run. roomy: spend memory on speed, for CPUs: the rows' pages are copied into one piece
    before the first step, and the parameters come `in_pieces`.
    """
    R = rows.tokens.shape[0]
    step_N = jnp.arange(steps)
    if roomy:
        cached = [gather_pages(pages[0][i], pages[1][i], rows.table) for i in range(model.num_hidden_layers)]

    def forward(step, tokens_R, new):
        def attend(q, k, v, positions, segments, new, layer):
            new = _put(new, k, v, layer, step)
            fresh = new[0][layer], new[1][layer]
            visible_1TN = (step_N <= step)[None, None]
            if not roomy:
                return paged_attention(platform, q, pages, layer, rows.table, rows.cached, fresh, visible_1TN), new
            if isinstance(layer, int):
                return cached_attention(q, cached[layer], rows.cached, fresh, visible_1TN), new
            # a switch rather than an index, which would copy the layer's cache
            branches = [partial(cached_attention, cached=c, lengths_B=rows.cached) for c in cached]
            return jax.lax.switch(
                layer, [lambda q, new, f=f: f(q, new=new, visible_BTN=visible_1TN) for f in branches], q, fresh
            ), new

        hidden, new = apply_model(model, params, attend, tokens_R[:, None], (rows.cached + step)[:, None], new)
        if roomy:
            return jnp.matmul(hidden[:, 0], params["scorer_DV"], preferred_element_type=jnp.float32), new
        return unembed(hidden[:, 0], unembedding(params, model)), new

    def body(state):
        step, tokens_R, new, drawn, counts_R, stopped_R = state
        logits_RV, new = forward(step, tokens_R, new)
        positions_R = rows.produced + counts_R
        now = next_token(logits_RV, gumbel_NRg[step], positions_R, sampling, temperature, top_p, prefix)
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
    places_NR = rows.produced + step_N[:, None]  # of the tokens of rows that are not through
    gumbel_NRg = jax.vmap(partial(gumbels, vocabulary=model.vocab_size), (None, 0))(rows.keys, places_NR)
    shapes = jax.eval_shape(
        lambda: next_token(
            jnp.zeros((R, model.vocab_size)), gumbel_NRg[0], rows.produced, sampling, temperature, top_p, prefix
        )
    )
    drawn = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), shapes)
    state = (0, jnp.asarray(rows.tokens), new, drawn, jnp.zeros(R, jnp.int32), jnp.zeros(R, bool))
    _, _, new, drawn, counts_R, stopped_R = jax.lax.while_loop(going, body, state)
    return _write(pages, new, rows), Decoded(drawn, counts_R, stopped_R)


def _buffers(pages: Pages, B: int, N: int) -> Any:
    """Room for N new tokens of B rows: keys [L, B, K, d, N] and values [L, B, K, N, d]; of few layers, a list each."""
    L, _, _, K, d = pages[0].shape
    keys, values = jnp.zeros((L, B, K, d, N), pages[0].dtype), jnp.zeros((L, B, K, N, d), pages[1].dtype)
    return ([*keys], [*values]) if L <= UNROLLED_LAYERS else (keys, values)


def _put(new: Any, k_BTKd: jax.Array, v_BTKd: jax.Array, layer: jax.Array | int, step: jax.Array | int) -> Any:
    """The buffers with a layer's keys and values from `step` on."""
    k, v = k_BTKd.transpose(0, 2, 3, 1).astype(new[0][0].dtype), v_BTKd.transpose(0, 2, 1, 3).astype(new[1][0].dtype)
    if isinstance(layer, int):
        keys = jax.lax.dynamic_update_slice(new[0][layer], k, (0, 0, 0, step))
        values = jax.lax.dynamic_update_slice(new[1][layer], v, (0, 0, step, 0))
        return [*new[0][:layer], keys, *new[0][layer + 1 :]], [*new[1][:layer], values, *new[1][layer + 1 :]]
    return (
        jax.lax.dynamic_update_slice(new[0], k[None], (layer, 0, 0, 0, step)),
        jax.lax.dynamic_update_slice(new[1], v[None], (layer, 0, 0, step, 0)),
    )


def _as_pages(new: Any) -> Pages:
    """The buffers as pages lay them out, [L, B, N, K, d]."""
    new = [jnp.stack(x) if isinstance(x, list) else x for x in new]
    return new[0].transpose(0, 1, 4, 2, 3), new[1].transpose(0, 1, 3, 2, 4)


def _write(pages: Pages, new: Pages, rows: Rows) -> Pages:
    """The pool with each row's new keys and values at the positions from `cached` on."""
    page_size, N = pages[0].shape[2], new[0][0].shape[3]
    place_RN = rows.cached[:, None] % page_size + jnp.arange(N)
    page_RN = jnp.take_along_axis(jnp.asarray(rows.write), place_RN // page_size, axis=1)
    return tuple(x.at[:, page_RN, place_RN % page_size].set(y) for x, y in zip(pages, _as_pages(new), strict=True))
