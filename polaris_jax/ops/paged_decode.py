"""Decoding kernels that read a paged cache through its page table, one query a row: Pallas for GPUs and for TPUs.

Both also see the tokens that are not in the cache yet, so that attention is one or two launches, and read nothing but
the pages that a row fills, however wide the table is. (JAX's own kernels want another layout of the pages.)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton

from polaris_jax.errors import UserError

HIDDEN = -1e30
GPU_BLOCK = 64  # tokens read at once; a page has as many, or a multiple, or less
GPU_PROGRAMS = 2048  # wanted: several waves on any GPU, so that rows of different lengths end together
GPU_SPLITS = 64  # of a row's tokens, at most; their results lie in the registers of one program when they are merged
TPU_TOKENS = 512  # read at once
TPU_ROWS = 16  # of one program, whose copies from memory run on from row to row
TPU_TABLE = 2**16  # page numbers of one program; they lie in scalar memory, of which a TPU core has 1 MiB

Pages = tuple[jax.Array, jax.Array]


def gpu_paged_decode(
    q_BHd: jax.Array, pages: Pages, layer: int, table_BW: jax.Array, lengths_B: jax.Array, new: Pages,
    seen_N: jax.Array, *, interpret: bool = False,
) -> jax.Array:  # fmt: skip
    """Grouped-query attention over the first `lengths` cached tokens of each row and the new tokens that are seen.

    pages: keys and values [L, P, p, K, d], of which those of `layer` are read; p and d powers of two of at least 16.
    table: int32 [B, W], page numbers. new: keys and values [B, N, K, d]. seen: bool [N], at least one. Returns
    [B, H, d] in q's dtype. Each row's tokens are split evenly over programs that run side by side, and the parts put
    together by a second kernel (flash-decoding). Raises UserError for another page size.
    """
    B, H, d = q_BHd.shape
    page_size, K = pages[0].shape[2:4]
    if page_size < 16 or page_size & (page_size - 1):
        raise UserError(f"config.rollout.page_size: GPUs need a power of two of at least 16, found {page_size}")
    most = min(GPU_SPLITS, pl.next_power_of_2(table_BW.shape[1]))
    splits = min(pl.next_power_of_2(max(GPU_PROGRAMS // (B * K), 1)), most)
    parts = jax.ShapeDtypeStruct((B, H, splits, d), jnp.float32), jax.ShapeDtypeStruct((B, H, splits), jnp.float32)
    out_BHSd, log_total_BHS = pl.pallas_call(
        partial(_gpu_kernel, splits=splits),
        grid=(B, K, splits),
        out_shape=parts,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="paged_decode",
    )(q_BHd, (jnp.full(1, layer, jnp.int32), table_BW, lengths_B), pages, (*new, seen_N.astype(jnp.int32)))
    return pl.pallas_call(
        _gpu_merge_kernel,
        grid=(B, H),
        out_shape=jax.ShapeDtypeStruct((B, H, d), q_BHd.dtype),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="paged_decode_merge",
    )(out_BHSd, log_total_BHS)


def _gpu_kernel(q_ref, where_refs, page_refs, new_refs, out_ref, log_total_ref, *, splits):
    """One part of the tokens of one row, for the queries of one kv head."""
    (layer_ref, table_ref, lengths_ref), (*new_kv_refs, seen_ref) = where_refs, new_refs
    (_, H, d), (_, _, page_size, K, _), N = q_ref.shape, page_refs[0].shape, seen_ref.shape[0]
    row, head, split = (pl.program_id(axis) for axis in range(3))
    group = jnp.arange(max(16, pl.next_power_of_2(H // K)))  # 16: the least that tensor cores multiply
    own, heads = group < H // K, head * (H // K) + group
    width = jnp.arange(d)[None]
    q = triton.load(q_ref.at[row, heads[:, None], width], mask=own[:, None], other=0)

    # The new tokens go to the last part, which has the fewest others. Where all is hidden, the sum is to be zero.
    token = jnp.arange(max(16, pl.next_power_of_2(N)))
    mine = (token < N) & (split == splits - 1)
    seen = mine & (triton.load(seen_ref.at[token], mask=mine, other=0) > 0)
    k, v = (triton.load(ref.at[row, token[:, None], head, width], mask=seen[:, None], other=0) for ref in new_kv_refs)
    state = jnp.zeros((len(group), d), jnp.float32), jnp.zeros(len(group)), jnp.full(len(group), HIDDEN)
    state = _attend(q, k, v, seen[None], state)

    block = min(page_size, GPU_BLOCK)
    of_a_page, length = page_size // block, lengths_ref[row]
    filled = pl.cdiv(length, block)
    count = pl.cdiv(filled, splits)
    first = split * count

    def one(i, state):
        where = (layer_ref[0], table_ref[row, i // of_a_page], pl.ds(i % of_a_page * block, block), head)
        if of_a_page == 1:
            where = (*where[:2], slice(None), head)
        visible = i * block + jnp.arange(block) < length
        return _attend(q, *(ref[where] for ref in page_refs), visible[None], state)

    out, total, largest = jax.lax.fori_loop(first, jnp.minimum(first + count, filled), one, state)
    total = jnp.maximum(total, 1e-30)
    triton.store(out_ref.at[row, heads[:, None], split, width], out / total[:, None], mask=own[:, None])
    triton.store(log_total_ref.at[row, heads, split], largest + jnp.log(total), mask=own)


def _gpu_merge_kernel(parts_ref, log_total_ref, out_ref):
    """The parts of one query head, weighted by their shares of the softmax."""
    where = pl.program_id(0), pl.program_id(1)
    log_total = log_total_ref[where]
    weights = jnp.exp(log_total - jnp.max(log_total))
    out = jnp.sum(weights[:, None] * parts_ref[where], axis=0) / jnp.sum(weights)
    out_ref[where] = out.astype(out_ref.dtype)


def _attend(q, k, v, visible, state):
    """Running softmax with one more block of keys. state: output, its denominator, and the largest score so far; the
    last two have no last axis, or one of size 1. Returns the new state."""
    out, total, largest = state
    keep = total.ndim == out.ndim
    column = (lambda x: x) if keep else (lambda x: x[:, None])
    scores = _dot(q, k.astype(q.dtype), 1) * q.shape[-1] ** -0.5
    scores = jnp.where(visible, scores, HIDDEN)
    new_largest = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=keep))
    weights = jnp.where(visible, jnp.exp(scores - column(new_largest)), 0)
    rescale = jnp.exp(largest - new_largest)
    out = out * column(rescale) + _dot(weights.astype(q.dtype), v.astype(q.dtype), 0)
    return out, total * rescale + jnp.sum(weights, axis=-1, keepdims=keep), new_largest


def _dot(x, y, axis):
    """Contracts the last axis of x with an axis of y, in float32."""
    return jax.lax.dot_general(x, y, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


def tpu_paged_decode(
    q_BHd: jax.Array, pages: Pages, layer: int, table_BW: jax.Array, lengths_B: jax.Array, new: Pages,
    seen_N: jax.Array, *, interpret: bool = False,
) -> jax.Array:  # fmt: skip
    """`gpu_paged_decode` for TPUs, which takes any page size.

    All kv heads of a page are multiplied with all queries at once, and the scores of other heads' keys are hidden: the
    matrix unit has to load each key anyway, and is idle otherwise.
    """
    (B, H, d), (L, P, page_size, K, _), N = q_BHd.shape, pages[0].shape, len(seen_N)
    at_once = max(TPU_TOKENS // page_size, 1)  # pages
    W = pl.cdiv(table_BW.shape[1], at_once) * at_once
    rows = next(rows for rows in range(TPU_ROWS, 0, -1) if B % rows == 0 and (rows * W <= TPU_TABLE or rows == 1))
    table_BW = jnp.pad(table_BW, ((0, 0), (0, W - table_BW.shape[1])))
    block = partial(pl.BlockSpec, index_map=lambda i, *_: (i, 0, 0))
    anywhere, of_rows = pl.BlockSpec(memory_space=pl.ANY), block((rows, N * K, d))
    return pl.pallas_call(
        partial(_tpu_kernel, kv_heads=K),
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B // rows,),
            in_specs=[
                block((rows, H, d)),
                (block((None, rows, W), memory_space=tpu.SMEM), anywhere, anywhere),
                (of_rows, of_rows, pl.BlockSpec((1, N * K), lambda i, *_: (0, 0))),
            ],
            out_specs=block((rows, H, d)),
            scratch_shapes=[
                (
                    [tpu.VMEM((2, at_once, page_size * K, d), x.dtype) for x in pages],
                    tpu.SemaphoreType.DMA((2,)),
                    [tpu.VMEM((H, width), jnp.float32) for width in (d, 1, 1)],
                )
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((B, H, d), q_BHd.dtype),
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
        name="paged_decode",
    )(
        jnp.full(1, layer, jnp.int32),
        lengths_B,
        q_BHd,
        (table_BW.reshape(-1, rows, W), *[x.reshape(L, P, page_size * K, d) for x in pages]),
        (*[x.reshape(B, N * K, d) for x in new], jnp.repeat(seen_N.astype(jnp.int32), K)[None]),
    )


def _tpu_kernel(layer_ref, lengths_ref, q_ref, cache_refs, new_refs, out_ref, scratch, *, kv_heads):
    """Some rows, one after the other, in blocks of several pages: while one is multiplied, the next is copied here."""
    (table_ref, *page_refs), (new_keys_ref, new_values_ref, seen_ref) = cache_refs, new_refs
    buffers, semaphores, state = scratch
    (rows, H, _), (_, at_once, slots, d) = q_ref.shape, buffers[0].shape
    tokens, first_row = slots // kv_heads * at_once, pl.program_id(0) * rows
    buffers[1][...] = jnp.zeros_like(buffers[1])  # what no page is copied to is multiplied with zero weights

    def blocks(row):
        return jnp.maximum(pl.cdiv(lengths_ref[first_row + row], tokens), 1)

    def for_pages(row, block, buffer, do):
        """Starts the copies of a block, or waits for them; pages that the row does not fill are left out."""
        for i in range(at_once):

            @pl.when((block * at_once + i) * (slots // kv_heads) < lengths_ref[first_row + row])
            def _(i=i):
                page = table_ref[row, block * at_once + i]
                for source, target in zip(page_refs, buffers, strict=True):
                    where = source.at[layer_ref[0], page], target.at[buffer, i], semaphores.at[buffer]
                    do(tpu.make_async_copy(*where))

    def visible(keys, where):
        """Of each query for each key, whose head may be another: those of its own head `where` they may be seen."""
        query_head, column = (jax.lax.broadcasted_iota(jnp.int32, (H, keys), axis) for axis in (0, 1))
        return (column % kv_heads == query_head // (H // kv_heads)) & where(column)

    def one(place):
        row, block, buffer = place
        last = block + 1 == blocks(row)
        following = jnp.where(last, row + 1, row), jnp.where(last, 0, block + 1), 1 - buffer

        @pl.when(following[0] < rows)
        def _():
            for_pages(*following, lambda copy: copy.start())

        @pl.when(block == 0)
        def _():
            zeros = jnp.zeros((H, d), jnp.float32), jnp.zeros((H, 1), jnp.float32), jnp.full((H, 1), HIDDEN)
            k, v = new_keys_ref[row], new_values_ref[row]
            _store(state, _attend(q_ref[row], k, v, visible(len(k), lambda _: seen_ref[...] > 0), zeros))

        for_pages(row, block, buffer, lambda copy: copy.wait())
        k, v = (x[buffer].reshape(at_once * slots, d) for x in buffers)
        left = lengths_ref[first_row + row] - block * tokens
        here = visible(len(k), lambda column: column // kv_heads < left)
        _store(state, _attend(q_ref[row], k, v, here, [ref[...] for ref in state]))

        @pl.when(last)
        def _():
            out_ref[row] = (state[0][...] / state[1][...]).astype(out_ref.dtype)

        return following

    for_pages(0, 0, 0, lambda copy: copy.start())
    jax.lax.while_loop(lambda place: place[0] < rows, one, (jnp.int32(0), jnp.int32(0), jnp.int32(0)))


def _store(refs, values):
    for ref, value in zip(refs, values, strict=True):
        ref[...] = value
