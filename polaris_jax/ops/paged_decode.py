"""Decoding kernels that read a paged cache through its page table, one query a row: Pallas for GPUs and for TPUs.

Both return, besides the output, the logarithm of each softmax's denominator, so that `merge` can add keys that are not
in the cache yet. (The kernels that come with JAX return no denominator, and want another layout of the pages.)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton

from polaris_jax.errors import UserError

HIDDEN = -1e30
SPLIT_TOKENS = 1024  # at least so many of a row's cache are read by one GPU program; its splits run side by side
PROGRAMS = 8192  # enough to keep a GPU busy; more splits would only make more parts to be put together
TPU_PAGES = 4  # in one step of the TPU's pipeline
TPU_TABLE = 2**17  # page numbers of one call; they lie in scalar memory, of which a TPU core has 1 MiB

Parts = tuple[jax.Array, jax.Array]


def merge(first: Parts, second: Parts) -> Parts:
    """Attention over the keys of both. Each: output float32 [..., d], log of the softmax's denominator [...]."""
    log_total = jnp.logaddexp(first[1], second[1])
    out = sum(jnp.exp(part[1] - log_total)[..., None] * part[0] for part in (first, second))
    return out, log_total


def gpu_paged_decode(
    q_BHd: jax.Array, keys_NpKd: jax.Array, values_NpKd: jax.Array, table_BW: jax.Array, lengths_B: jax.Array,
    *, interpret: bool = False,
) -> Parts:  # fmt: skip
    """Grouped-query attention over the first `lengths` cached tokens of each row.

    keys, values: [N, p, K, d], all pages; p and d powers of two of at least 16. table: int32 [B, W], page numbers.
    Returns the output, float32 [B, H, d] (0 for an empty row), and its log-denominators, float32 [B, H]. Long caches
    are split, and the parts put together (flash-decoding). Raises UserError for another page size.
    """
    B, H, d = q_BHd.shape
    _, page_size, K, _ = keys_NpKd.shape
    if page_size < 16 or page_size & (page_size - 1):
        raise UserError(f"config.rollout.page_size: GPUs need a power of two of at least 16, found {page_size}")
    G, rows = H // K, max(16, pl.next_power_of_2(H // K))  # 16: the least that tensor cores multiply
    W = table_BW.shape[1]
    splits = min(pl.cdiv(W * page_size, SPLIT_TOKENS), max(PROGRAMS // (B * K), 1))
    pages = pl.cdiv(W, splits)  # of one split
    q_BKGd = jnp.pad((q_BHd * d**-0.5).reshape(B, K, G, d), ((0, 0), (0, 0), (0, rows - G), (0, 0)))
    table_BW = jnp.pad(table_BW, ((0, 0), (0, splits * pages - W)))
    everything = pl.BlockSpec(keys_NpKd.shape, lambda b, h, s: (0, 0, 0, 0))
    out_BKSGd, log_total_BKSG = pl.pallas_call(
        partial(_gpu_kernel, pages=pages),
        grid=(B, K, splits),
        in_specs=[
            pl.BlockSpec((None, None, rows, d), lambda b, h, s: (b, h, 0, 0)),
            everything,
            everything,
            pl.BlockSpec((None, pages), lambda b, h, s: (b, s)),
            pl.BlockSpec((None,), lambda b, h, s: (b,)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, rows, d), lambda b, h, s: (b, h, s, 0, 0)),
            pl.BlockSpec((None, None, None, rows), lambda b, h, s: (b, h, s, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((B, K, splits, rows, d), jnp.float32),
            jax.ShapeDtypeStruct((B, K, splits, rows), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="paged_decode",
    )(q_BKGd, keys_NpKd, values_NpKd, table_BW, lengths_B)
    log_total_BKG = jax.nn.logsumexp(log_total_BKSG, axis=2)
    weights_BKSG = jnp.exp(log_total_BKSG - log_total_BKG[:, :, None])
    out_BKGd = jnp.einsum("BKSG,BKSGd->BKGd", weights_BKSG, out_BKSGd)
    return out_BKGd[:, :, :G].reshape(B, H, d), log_total_BKG[:, :, :G].reshape(B, H)


def _gpu_kernel(q_ref, keys_ref, values_ref, table_ref, length_ref, out_ref, log_total_ref, *, pages):
    rows, d = q_ref.shape
    page_size = keys_ref.shape[1]
    head, first = pl.program_id(1), pl.program_id(2) * pages
    q, length = q_ref[...], length_ref[...]

    def page(i, carry):
        out, total, largest = carry
        where = table_ref[i], slice(None), head
        k, v = keys_ref[where].astype(q.dtype), values_ref[where].astype(q.dtype)
        slots = (first + i) * page_size + jnp.arange(page_size)
        scores = jnp.where(slots[None] < length, pl.dot(q, k, trans_b=True), HIDDEN)
        return _softmax_step(scores, v, out, total, largest)

    start = jnp.zeros((rows, d), jnp.float32), jnp.zeros(rows, jnp.float32), jnp.full(rows, HIDDEN, jnp.float32)
    filled = jnp.clip(pl.cdiv(length, page_size) - first, 0, pages)
    out, total, largest = jax.lax.fori_loop(0, filled, page, start)
    out_ref[...] = out / jnp.maximum(total, 1e-30)[:, None]
    log_total_ref[...] = jnp.where(total > 0, largest + jnp.log(jnp.maximum(total, 1e-30)), HIDDEN)


def _softmax_step(scores, v, out, total, largest):
    """Running softmax with one more block of keys; total and largest have no last axis, or one of size 1."""
    keep = total.ndim == scores.ndim
    column = (lambda x: x) if keep else (lambda x: x[:, None])
    new_largest = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=keep))
    weights, rescale = jnp.exp(scores - column(new_largest)), jnp.exp(largest - new_largest)
    out = out * column(rescale) + pl.dot(weights.astype(v.dtype), v)
    return out, total * rescale + jnp.sum(weights, axis=-1, keepdims=keep), new_largest


def tpu_paged_decode(
    q_BHd: jax.Array, keys_NpKd: jax.Array, values_NpKd: jax.Array, table_BW: jax.Array, lengths_B: jax.Array,
    *, interpret: bool = False,
) -> Parts:  # fmt: skip
    """`gpu_paged_decode` for TPUs, which takes any page size.

    All kv heads of a page are multiplied with all queries at once, and the scores of other heads' keys are hidden: the
    matrix unit has to load each key anyway, and is idle otherwise.
    """
    B, H, d = q_BHd.shape
    N, page_size, K, _ = keys_NpKd.shape
    rows = max(TPU_TABLE // table_BW.shape[1], 1)
    if rows < B:
        call = partial(tpu_paged_decode, interpret=interpret)
        split = [slice(i, i + rows) for i in range(0, B, rows)]
        parts = [call(q_BHd[s], keys_NpKd, values_NpKd, table_BW[s], lengths_B[s]) for s in split]
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    W = pl.cdiv(table_BW.shape[1], TPU_PAGES) * TPU_PAGES
    table_N = jnp.pad(table_BW, ((0, 0), (0, W - table_BW.shape[1]))).reshape(-1)

    def page(b, w, table, lengths, *, i):
        """Beyond the row's last page that page again, which is not fetched twice."""
        last = jnp.maximum(pl.cdiv(lengths[b], page_size) - 1, 0)
        return table[b * W + jnp.minimum(w * TPU_PAGES + i, last)], 0, 0

    page_specs = [pl.BlockSpec((None, page_size * K, d), partial(page, i=i)) for i in range(TPU_PAGES)]
    row = pl.BlockSpec((None, H, d), lambda b, w, *_: (b, 0, 0))
    out_BHd, log_total_BHn = pl.pallas_call(
        partial(_tpu_kernel, page_size=page_size, kv_heads=K),
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, W // TPU_PAGES),
            in_specs=[row, *page_specs, *page_specs],
            out_specs=[row, pl.BlockSpec((None, H, 128), lambda b, w, *_: (b, 0, 0))],
            scratch_shapes=[tpu.VMEM((H, width), jnp.float32) for width in (d, 1, 1)],
        ),
        out_shape=[jax.ShapeDtypeStruct((B, H, d), jnp.float32), jax.ShapeDtypeStruct((B, H, 128), jnp.float32)],
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="paged_decode",
    )(
        table_N, lengths_B, q_BHd * d**-0.5,
        *[keys_NpKd.reshape(N, page_size * K, d)] * TPU_PAGES, *[values_NpKd.reshape(N, page_size * K, d)] * TPU_PAGES,
    )  # fmt: skip
    return out_BHd, log_total_BHn[:, :, 0]


def _tpu_kernel(table_ref, lengths_ref, q_ref, *refs, page_size, kv_heads):
    del table_ref
    keys, values, (out_ref, log_total_ref, sum_ref, total_ref, largest_ref) = (
        refs[:TPU_PAGES], refs[TPU_PAGES : 2 * TPU_PAGES], refs[2 * TPU_PAGES :]
    )  # fmt: skip
    step, length = pl.program_id(1), lengths_ref[pl.program_id(0)]

    @pl.when(step == 0)
    def _():
        sum_ref[...] = jnp.zeros_like(sum_ref)
        total_ref[...] = jnp.zeros_like(total_ref)
        largest_ref[...] = jnp.full_like(largest_ref, HIDDEN)

    for i, (key_ref, value_ref) in enumerate(zip(keys, values, strict=True)):
        first = (step * TPU_PAGES + i) * page_size

        @pl.when(first < length)
        def _(first=first, key_ref=key_ref, value_ref=value_ref):
            q = q_ref[...]
            k, v = key_ref[...].astype(q.dtype), value_ref[...].astype(q.dtype)
            scores = pl.dot(q, k, trans_b=True)
            query_head, column = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
            same_head = column % kv_heads == query_head // (q.shape[0] // kv_heads)
            scores = jnp.where(same_head & (first + column // kv_heads < length), scores, HIDDEN)
            state = _softmax_step(scores, v, sum_ref[...], total_ref[...], largest_ref[...])
            sum_ref[...], total_ref[...], largest_ref[...] = state

    @pl.when(step == pl.num_programs(1) - 1)
    def _():
        total = jnp.maximum(total_ref[...], 1e-30)
        out_ref[...] = sum_ref[...] / total
        log_total = jnp.where(total_ref[...] > 0, largest_ref[...] + jnp.log(total), HIDDEN)
        log_total_ref[...] = jnp.broadcast_to(log_total, log_total_ref.shape)
