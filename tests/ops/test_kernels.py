"""Kernels in interpret mode, and cuDNN's wrapper with XLA in its place, against the portable versions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models.presets import PRESETS
from polaris_jax.ops.attention import packed_attention
from polaris_jax.ops.cudnn import cudnn_attention, cudnn_context_attention
from polaris_jax.ops.paged_attention import Cache, paged_attention
from polaris_jax.ops.splash import splash_attention

HEADS = sorted({(m.num_attention_heads, m.num_key_value_heads, m.head_dim) for m in PRESETS.values()})
EMPTY = ()


def paged(platform, q, cache, layer, new, visible, **options):
    """`paged_attention`, jitted."""
    run = lambda q, cache, new: paged_attention(platform, q, cache, layer, new, visible, **options)  # noqa: E731
    return jax.jit(run)(q, cache, new)


def rows_of(T, rows, heads, seed=0):
    """q, k, v, positions and segment ids of the sequences whose lengths `rows` lists, every other one off-policy."""
    (H, K, d), rng = heads, np.random.default_rng(seed)
    positions, segment_ids = np.zeros((2, len(rows), T), np.int32)
    for row, lengths in enumerate(rows):
        start = 0
        for segment, length in enumerate(lengths, start=1):
            positions[row, start : start + length] = np.arange(length)
            segment_ids[row, start : start + length] = segment * (-1) ** segment
            start += length
    q, k, v = (rng.normal(size=(len(rows), T, n, d)).astype(np.float32) for n in (H, K, K))
    return q, k, v, positions, segment_ids


def assert_same_with_gradients(kernel, portable, q, k, v, segment_ids):
    """Values and gradients where there is no padding."""
    weights = np.random.default_rng(1).normal(size=q.shape) * (segment_ids != 0)[..., None, None]

    def total(function):
        def value(q, k, v):
            out = function(q, k, v)
            return jnp.sum(out * weights), out * (segment_ids != 0)[..., None, None]

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    found, expected = total(kernel), total(portable)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=5e-5), found, expected)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_splash_equals_the_portable_attention(heads):
    T = 77 if heads[0] > 4 else 300  # the latter in three blocks
    rows = [(T // 3, 1, T // 2), EMPTY] if heads[0] > 4 else [(T // 3, 1, T // 2), (T,), EMPTY]
    q, k, v, positions, segment_ids = rows_of(T, rows, heads)
    assert_same_with_gradients(
        lambda q, k, v: splash_attention(q, k, v, (segment_ids, segment_ids), interpret=True),
        lambda q, k, v: packed_attention(q, k, v, positions, segment_ids)[0],
        q, k, v, segment_ids,
    )  # fmt: skip


def test_splash_in_parts_equals_whole_rows():
    q, k, v, positions, segment_ids = rows_of(256, [(100, 60, 90), EMPTY], (4, 2, 32))

    def in_parts(q, k, v):
        part = jax.vmap(
            lambda i, q, s: splash_attention(q, k, v, (s, segment_ids), part=i, interpret=True), in_axes=(0, 1, 1),
            out_axes=1,
        )  # fmt: skip
        halves = q.reshape(2, 2, 128, 4, 32), segment_ids.reshape(2, 2, 128)
        return part(jnp.arange(2), *halves).reshape(q.shape)

    assert_same_with_gradients(
        in_parts, lambda q, k, v: packed_attention(q, k, v, positions, segment_ids)[0], q, k, v, segment_ids
    )


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_cudnn_rows_of_one_sequence_equal_the_portable_attention(heads):
    q, k, v, positions, segment_ids = rows_of(33, [(20,), (33,), EMPTY, (1,)], heads)
    assert_same_with_gradients(
        lambda q, k, v: cudnn_attention(q, k, v, segment_ids, "xla"),
        lambda q, k, v: packed_attention(q, k, v, positions, segment_ids)[0],
        q, k, v, segment_ids,
    )  # fmt: skip


@pytest.mark.parametrize("heads", [(8, 4, 16), (12, 2, 16)], ids=str)
def test_cudnn_over_context_equals_whole_rows(heads):
    q, k, v, _, segment_ids = rows_of(32, [(20,), (32,)], heads)
    cut = lambda x: x.reshape(2, 4, 8, *x.shape[2:])  # noqa: E731
    run = jax.vmap(partial(cudnn_context_attention, implementation="xla"), 1, 1, axis_name="context")
    found = jax.jit(run)(*(cut(x) for x in (q, k, v, segment_ids))).reshape(q.shape)
    expected = jax.jit(partial(cudnn_attention, implementation="xla"))(q, k, v, segment_ids)
    real = segment_ids != 0
    np.testing.assert_allclose(found[real], expected[real], atol=1e-5)


def cache_of(heads, page_size, lengths, new, seed=0):
    """q [B, new, H, d], a pool of two layers, the page table, and buffers of new tokens."""
    (_, K, d), rng, B = heads, np.random.default_rng(seed), len(lengths)
    width = -(-max(lengths) // page_size)
    pages = tuple(rng.normal(size=(2, 1 + B * width, page_size, K, d)).astype(np.float32) for _ in "kv")
    table = 1 + rng.permutation(B * width).reshape(B, width).astype(np.int32)
    return pages, table, tuple(rng.normal(size=(B, new, K, d)).astype(np.float32) for _ in "kv")


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_paged_decoding_equals_the_portable_attention(heads, platform):
    page_size = 16 if heads[0] > 4 else 512  # with the latter, several splits of the keys
    lengths = np.array([0, 2 * page_size + 3, 3 * page_size], np.int32)
    pages, table, new = cache_of(heads, page_size, lengths, 4)
    q = np.random.default_rng(2).normal(size=(3, 1, heads[0], heads[2])).astype(np.float32)
    rest = Cache(pages, table, lengths), 1, new, np.array([[[True, True, True, False]]])
    np.testing.assert_allclose(paged(platform, q, *rest, interpret=True), paged("cpu", q, *rest), atol=2e-5)


@pytest.mark.parametrize(("platform", "options"), [("gpu", {"implementation": "xla"}), ("tpu", {"interpret": True})])
@pytest.mark.parametrize("cached", [(0, 0, 0), (0, 16, 48)])
def test_a_prefilled_chunk_equals_the_portable_attention(platform, options, cached, monkeypatch):
    monkeypatch.setattr("polaris_jax.ops.paged_attention.DTYPES", ("float32",))  # XLA stands in for cuDNN
    heads, T = (4, 2, 32), 32
    pages, table, new = cache_of(heads, 16, cached, T)
    q = np.random.default_rng(2).normal(size=(3, T, 4, 32)).astype(np.float32)
    rest = Cache(pages, table, np.array(cached, np.int32)), 1, new, np.tri(T, dtype=bool)[None]
    np.testing.assert_allclose(paged(platform, q, *rest, **options), paged("cpu", q, *rest), atol=2e-5)
