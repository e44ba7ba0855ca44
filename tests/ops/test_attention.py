import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.ops import attention, blockwise_attention
from polaris_jax.ops.attention import packed_attention

H, K, d = 4, 2, 16


def plain(q, k, v, positions, segment_ids):
    """Every pair of slots, one softmax."""
    k, v = jnp.repeat(k, H // K, axis=2), jnp.repeat(v, H // K, axis=2)
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(d)
    seen = segment_ids[:, :, None] == segment_ids[:, None]
    seen &= positions[:, :, None] >= positions[:, None]
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1), v)


def packed(T, rows, seed=0):
    """q, k, v, and positions and segment ids of the sequences whose lengths `rows` lists, row by row."""
    rng = np.random.default_rng(seed)
    B = len(rows)
    positions, segment_ids = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    for row, lengths in enumerate(rows):
        start = 0
        for segment, length in enumerate(lengths, start=1):
            positions[row, start : start + length] = np.arange(length)
            segment_ids[row, start : start + length] = segment
            start += length
    q, k, v = (rng.normal(size=(B, T, heads, d)).astype(np.float32) for heads in (H, K, K))
    return q, k, v, positions, segment_ids


CASES = {
    "dense, causal blocks": (128, [[60, 30, 38], [100], [1, 2, 3]]),
    "dense, one block": (37, [[20, 10], [37]]),
    "by blocks": (1536, [[700, 100, 736], [1536], [5]]),
    "by blocks, ragged row": (1100, [[513, 500], [1]]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_the_plain_softmax(name):
    q, k, v, positions, segment_ids = packed(*CASES[name])
    weights = np.random.default_rng(1).normal(size=q.shape) * (segment_ids > 0)[..., None, None]

    def total(function):
        def value(q, k, v):
            return jnp.sum(function(q, k, v, positions, segment_ids) * weights)

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))(q, k, v)

    found, expected = total(lambda *x: packed_attention(*x)[0]), total(plain)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5), found, expected)


@pytest.mark.parametrize("T", [64, 1536])
def test_a_segment_does_not_see_its_neighbours(T):
    """The other segment's tokens change; this one's outputs keep their bits."""
    q, k, v, positions, segment_ids = packed(T, [[T // 2 - 3, T // 2 - 5]])
    run = jax.jit(lambda *x: packed_attention(*x, positions, segment_ids)[0])
    before = run(q, k, v)
    other = (segment_ids == 1)[..., None, None]
    after = run(*(np.where(other, x + 1, x) for x in (q, k, v)))
    np.testing.assert_array_equal(before[segment_ids == 2], after[segment_ids == 2])
    assert not np.array_equal(before[segment_ids == 1], after[segment_ids == 1])


def test_memory_of_a_long_row_is_linear_in_its_length():
    def temporaries(T):
        shapes = [jax.ShapeDtypeStruct((1, T, heads, d), jnp.float32) for heads in (H, K, K)]
        shapes += [jax.ShapeDtypeStruct((1, T), jnp.int32)] * 2
        grad = jax.jit(jax.grad(lambda *x: packed_attention(*x)[0].sum(), argnums=(0, 1, 2)))
        return grad.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    short, middle, long = (temporaries(n * 1024) for n in (4, 8, 16))
    assert long - middle < 2.2 * (middle - short)
    assert long < 16_384**2  # far below one score matrix


def test_both_ways_agree(monkeypatch):
    q, k, v, positions, segment_ids = packed(256, [[100, 156], [250]])
    dense, _ = packed_attention(q, k, v, positions, segment_ids)
    monkeypatch.setattr(attention, "DENSE", 0)
    monkeypatch.setattr(blockwise_attention, "BLOCK", 64)
    blocks, _ = packed_attention(q, k, v, positions, segment_ids)
    real = segment_ids > 0
    np.testing.assert_allclose(dense[real], blocks[real], atol=1e-5)
