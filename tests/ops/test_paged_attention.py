"""Attention over pages equals attention over the whole sequence."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.ops.attention import packed_attention
from polaris_jax.ops.paged_attention import cached_attention, gather_pages


@pytest.mark.parametrize("page_size", [4, 16])
@pytest.mark.parametrize("new", [1, 5])
def test_equals_attention_over_the_whole_sequence(page_size, new):
    rng = np.random.default_rng(0)
    B, T, H, K, d = 3, 16, 4, 2, 8
    q, k, v = (jnp.asarray(rng.normal(size=(B, T + new, n, d)), jnp.float32) for n in (H, K, K))
    lengths = np.array([0, 7, 16])  # cached of each row; the new tokens follow
    W = T // page_size
    table = 1 + rng.permutation(B * W).reshape(B, W)
    pages_k, pages_v = (np.full((1 + B * W, page_size, K, d), 1e6, np.float32) for _ in range(2))
    for row in range(B):
        for t in range(lengths[row]):
            page = table[row, t // page_size]
            pages_k[page, t % page_size], pages_v[page, t % page_size] = k[row, t], v[row, t]
    take = lambda x: jnp.stack([x[row, n : n + new] for row, n in enumerate(lengths)])  # noqa: E731
    fresh = take(k).transpose(0, 2, 3, 1), take(v).transpose(0, 2, 1, 3)
    causal = jnp.tril(jnp.ones((new, new), bool))[None]
    out = cached_attention(take(q), gather_pages(pages_k, pages_v, table), lengths, fresh, causal)
    spot = jnp.broadcast_to(jnp.arange(T + new), (B, T + new))
    whole, _ = packed_attention(q, k, v, spot, jnp.ones_like(spot))
    np.testing.assert_allclose(out, take(whole), atol=1e-5)
