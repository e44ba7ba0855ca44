"""Tokens come with the frequencies of the softmax after temperature, top-k and top-p, and from their address alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy import stats

from polaris_jax.rollout.sampling import Sampling, gumbels, next_token, sequence_key, split

V, N = 23, 8_000
LOGITS = np.random.default_rng(0).normal(0, 2, V).astype(np.float32)


def draw_many(sampling, seed=0):
    keys = np.random.default_rng(seed).integers(0, 2**32, (N, 2), dtype=np.uint32)
    step = jax.jit(next_token, static_argnums=3)
    positions = np.arange(N, dtype=np.int32)
    return step(np.tile(LOGITS, (N, 1)), gumbels(keys, positions, V), positions, *split(sampling))


def distribution(temperature=1.0, top_k=0, top_p=1.0):
    """The obvious way: sort, cut, renormalise."""
    order = np.argsort(-LOGITS)
    probs = np.exp(LOGITS[order].astype(float) / temperature)
    if top_k:
        probs[top_k:] = 0
    probs /= probs.sum()
    probs[np.cumsum(probs) - probs >= top_p] = 0
    result = np.zeros(V)
    result[order] = probs / probs.sum()
    return result


@pytest.mark.parametrize("temperature", [0.6, 1.4])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.8), (7, 0.9)])
def test_frequencies_are_those_of_the_distribution(temperature, top_k, top_p):
    drawn = draw_many(Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    probs = distribution(temperature, top_k, top_p)
    counts = np.bincount(drawn.tokens, minlength=V)
    assert counts[probs == 0].sum() == 0
    kept = probs > 0
    assert stats.chisquare(counts[kept], N * probs[kept]).pvalue > 1e-3
    np.testing.assert_allclose(drawn.logprobs, np.log(probs[drawn.tokens]), atol=1e-4)


def test_greedy_takes_the_largest_and_records_temperature_one():
    drawn = draw_many(Sampling(temperature=0.0))
    assert set(drawn.tokens.tolist()) == {int(LOGITS.argmax())}
    np.testing.assert_allclose(drawn.logprobs, jax.nn.log_softmax(LOGITS).max(), atol=1e-5)


def test_positions_and_sequences_are_independent():
    tokens = np.asarray(draw_many(Sampling()).tokens)
    table = np.zeros((V, V))
    np.add.at(table, (tokens[:-1], tokens[1:]), 1)
    table = table[table.sum(1) > N / 50][:, table.sum(0) > N / 50]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_the_key_is_the_address():
    keys = {tuple(sequence_key(seed, id_, k)) for seed in (0, 1) for id_ in ("a", "b", "1/a") for k in (0, 1)}
    assert len(keys) == 12
    assert sequence_key(3, "aime24/1", 2).tolist() == [854637948, 1268088434]  # the same everywhere, for good


@pytest.mark.parametrize(
    ("change", "message"),
    [(dict(temperature=-1), "temperature"), (dict(top_p=0.0), "top_p"), (dict(top_k=-1), "top_k"),
     (dict(max_response_tokens=2, prefix=(1, 2)), "forced prefix")],
)  # fmt: skip
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**change)
