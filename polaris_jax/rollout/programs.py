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
from polaris_jax.models.transformer import Transformer
from polaris_jax.ops.paged_attention import Cache, Pages, paged_attention
from polaris_jax.rollout import new_tokens
from polaris_jax.rollout.layout import logits
from polaris_jax.rollout.platforms import Platform
from polaris_jax.rollout.sampling import Drawn, Numbers, Sampling, gumbels, next_token, only_known
from polaris_jax.sharding.rules import RULES


class Program(NamedTuple):
    """What decides a decoding program; another value is another program. sampling: as `split` leaves it."""

    model: ModelConfig
    sampling: Sampling
    steps: int
    platform: Platform


class Chunks(NamedTuple):
    """Parts of B prompts to prefill, numpy or jax. Each starts on a page of its own.

    tokens: int32 [B, T]. starts: int32 [B], position of the first. table: int32 [B, W], pages of the tokens before it.
    write: int32 [B, n], where the chunk's n pages go, null for none; tokens beyond T leave zeros in the last.
    """

    tokens: Any
    starts: Any
    table: Any
    write: Any


class Slots(NamedTuple):
    """The decoding sequences, one a slot; S slots, numpy or jax.

    tokens: int32 [S], the newest, not in the cache yet. cached: int32 [S], tokens in the cache. produced: int32 [S],
    response tokens so far. limits: int32 [S], most response tokens; slots of padding have produced = limit.
    keys: uint32 [S, 2]. table: int32 [S, W], pages of the cached tokens. write: int32 [S, n], the pages from the one
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
    """drawn: `Drawn` with leading axes [steps, S], valid for the first `counts`, int32 [S], steps of each slot.

    stopped: bool [S], the last of them is a stop token.
    """

    drawn: Drawn
    counts: jax.Array
    stopped: jax.Array


def apply_model(transformer: Transformer, params: Any, tokens_BT, positions_BT, cache: Any) -> tuple[jax.Array, Any]:
    """Hidden states [B, T, D] and the cache, from the trainer's module with another attention.

    params: the sampler's, of `layout.lay_out`.
    """
    with nn.logical_axis_rules(RULES):
        return transformer.apply({"params": params}, tokens_BT, positions_BT, jnp.ones_like(tokens_BT), cache)


def prefill(model: ModelConfig, platform: Platform, params: Any, pages: Pages, chunks: Chunks) -> Pages:
    """The pool with keys and values of the chunks, each after what its `table` holds."""
    (B, T), n, page_size = chunks.tokens.shape, chunks.write.shape[1], pages[0].shape[2]
    step_T = jnp.arange(T)
    visible_1TT = (step_T[:, None] >= step_T)[None]
    cache = Cache(pages, chunks.table, chunks.starts)

    def attend(q, k, v, positions, segments, new, layer):
        fresh = k.astype(pages[0].dtype), v.astype(pages[1].dtype)
        return paged_attention(platform.kernels, q, cache, layer, fresh, visible_1TT), [*new, fresh]

    transformer, positions_BT = Transformer(model, attend), chunks.starts[:, None] + step_T
    _, new = apply_model(transformer, params, chunks.tokens, positions_BT, [])
    rest = (0, 0), (0, 0), (0, n * page_size - T), (0, 0), (0, 0)
    return tuple(
        x.at[:, chunks.write.reshape(-1)].set(jnp.pad(y, rest).reshape(x.shape[0], B * n, *x.shape[2:]))
        for x, y in zip(pages, new_tokens.as_pages(new), strict=True)
    )


def copy_pages(pages: Pages, sources: jax.Array, targets: jax.Array) -> Pages:
    """The pool with pages copied. sources, targets: int32 [n]; null to null is padding."""
    return tuple(x.at[:, targets].set(x[:, sources]) for x in pages)


def decode(
    program: Program, params: Any, pages: Pages, slots: Slots, numbers: Numbers, patience: jax.Array
) -> tuple[Pages, Decoded]:
    """Up to `steps` tokens for each slot; returns early once more than `patience` slots are through in this call."""
    model, sampling, steps, platform = program
    S, step_N = len(slots.tokens), jnp.arange(steps)

    # The randomness of all steps at once: it depends on a slot's key and positions, not on what is drawn.
    places_NS = slots.produced + step_N[:, None]  # of the tokens of slots that are not through
    gumbel_NSg = jax.vmap(partial(gumbels, vocabulary=model.vocab_size), (None, 0))(slots.keys, places_NS)

    # One step of the model: the newest token of each slot in, logits out.
    read = platform.read_pages(platform.kernels, Cache(pages, slots.table, slots.cached))

    def forward(step, tokens_S, new):
        def attend(q, k, v, positions, segments, new, layer):
            new = new_tokens.put(new, (k, v), layer, step, platform.new_order)
            return read(q, layer, new[layer], (step_N <= step)[None, None]), new

        transformer, positions_S1 = Transformer(model, attend), (slots.cached + step)[:, None]
        hidden_S1D, new = apply_model(transformer, params, tokens_S[:, None], positions_S1, new)
        return only_known(logits(model, params, hidden_S1D[:, 0]), model.known_tokens), new

    # One step of the loop: draw, record, and count for the slots that still run. The others go on, unheard.
    def draw(logits_SV, gumbel_Sg, positions_S):
        return next_token(logits_SV, gumbel_Sg, positions_S, sampling, numbers)

    def body(state):
        step, tokens_S, new, drawn, counts_S, stopped_S = state
        logits_SV, new = forward(step, tokens_S, new)
        positions_S = slots.produced + counts_S
        now = draw(logits_SV, gumbel_NSg[step], positions_S)
        active_S = ~stopped_S & (positions_S < slots.limits)
        counts_S = counts_S + active_S
        stop_S = jnp.isin(now.tokens, numbers.stop_ids) & (positions_S >= len(sampling.prefix))
        drawn = jax.tree.map(lambda all_, x: all_.at[step].set(x), drawn, now)
        return step + 1, now.tokens, new, drawn, counts_S, stopped_S | (active_S & stop_S)

    # Slots of padding are through from the start, which is nothing to return early for.
    def going(state):
        step, _, _, _, counts_S, stopped_S = state
        through_S = stopped_S | (slots.produced + counts_S >= slots.limits)
        return (step < steps) & (jnp.sum(through_S & (slots.produced < slots.limits)) <= patience) & ~jnp.all(through_S)

    # The loop, from empty records, and what it leaves in the pool.
    some_SV = jax.ShapeDtypeStruct((S, model.vocab_size), jnp.float32)
    shapes = jax.eval_shape(draw, some_SV, gumbel_NSg[0], slots.produced)
    drawn = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), shapes)
    new, tokens_S = new_tokens.empty(pages, S, steps, platform.new_order), jnp.asarray(slots.tokens)
    state = (0, tokens_S, new, drawn, jnp.zeros(S, jnp.int32), jnp.zeros(S, bool))
    _, _, new, drawn, counts_S, stopped_S = jax.lax.while_loop(going, body, state)
    return _write(pages, new_tokens.as_pages(new, platform.new_order), slots), Decoded(drawn, counts_S, stopped_S)


def _write(pages: Pages, new: Pages, slots: Slots) -> Pages:
    """The pool with each slot's new keys and values, [L, S, N, K, d], at the positions from `cached` on."""
    page_size, N = pages[0].shape[2], new[0].shape[2]
    place_SN = slots.cached[:, None] % page_size + jnp.arange(N)
    page_SN = jnp.take_along_axis(jnp.asarray(slots.write), place_SN // page_size, axis=1)
    return tuple(x.at[:, page_SN, place_SN % page_size].set(y) for x, y in zip(pages, new, strict=True))
