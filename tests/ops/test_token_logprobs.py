import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.ops.token_logprobs import token_logprobs

B, T, D, V = 3, 7, 8, 40
rng = np.random.default_rng(0)
HIDDEN = rng.normal(size=(B, T, D)).astype(np.float32)
UNEMBEDDING = rng.normal(size=(V, D)).astype(np.float32)
TARGETS = rng.integers(0, V, (B, T)).astype(np.int32)
WEIGHTS = rng.normal(size=(2, B, T)).astype(np.float32)


def plain(hidden, unembedding, targets, temperature):
    logp = jax.nn.log_softmax(hidden @ unembedding.T / temperature)
    return jnp.take_along_axis(logp, targets[..., None], -1)[..., 0], -(jnp.exp(logp) * logp).sum(-1)


@pytest.mark.parametrize("chunk", [None, 1, 4, 7, 21, 100])
@pytest.mark.parametrize("temperature", [0.7, 1.4])
def test_values_and_gradients_equal_the_whole_array(chunk, temperature):
    def total(function, hidden, unembedding):
        return sum(
            (w * x).sum() for w, x in zip(WEIGHTS, function(hidden, unembedding, TARGETS, temperature), strict=True)
        )

    def ours(*args):
        return token_logprobs(*args, chunk=chunk)

    for found, expected in zip(
        ours(HIDDEN, UNEMBEDDING, TARGETS, temperature), plain(HIDDEN, UNEMBEDDING, TARGETS, temperature), strict=True
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    found, expected = (
        jax.grad(lambda *x, f=f: total(f, *x), argnums=(0, 1))(HIDDEN, UNEMBEDDING) for f in (ours, plain)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), found, expected)


def test_half_precision_hidden_states_keep_float32_logits():
    half = jnp.asarray(HIDDEN, jnp.bfloat16)
    found, _ = token_logprobs(half, UNEMBEDDING, TARGETS, 1.0)
    rounded = jnp.asarray(UNEMBEDDING, jnp.bfloat16).astype(jnp.float32)
    expected, _ = plain(half.astype(jnp.float32), rounded, TARGETS, 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 4])
def test_ids_without_a_token_are_no_part_of_the_softmax(chunk):
    known = int(TARGETS.max()) + 1
    more = np.concatenate([UNEMBEDDING[:known], 9 * UNEMBEDDING[:5]])  # large logits that nothing may see

    def total(unembedding, **settings):
        found = token_logprobs(HIDDEN, unembedding, TARGETS, 0.9, chunk=chunk, **settings)
        return sum((w * x).sum() for w, x in zip(WEIGHTS, found, strict=True)), found

    found, expected = (
        jax.value_and_grad(total, has_aux=True)(*args, **settings)
        for args, settings in (((more,), dict(known=known)), ((UNEMBEDDING[:known],), {}))
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), found[0], expected[0])
    np.testing.assert_allclose(found[1][:known], expected[1], rtol=1e-5, atol=1e-5)
    assert not found[1][known:].any()


@pytest.mark.parametrize("trained", [[], [20], [0, 2, 3, 8, 13, 19, 20], range(B * T)])
@pytest.mark.parametrize("chunk", [None, 4])
def test_tokens_that_are_left_out_have_no_part_in_values_and_gradients(chunk, trained):
    mask = np.zeros((B, T), np.float32)
    mask.reshape(-1)[list(trained)] = 1

    def total(hidden, unembedding, **chosen):
        found = token_logprobs(hidden, unembedding, TARGETS, 0.9, chunk=chunk, **chosen)
        return sum((w * x * mask).sum() for w, x in zip(WEIGHTS, found, strict=True)), found

    every, chosen = (
        jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(HIDDEN, UNEMBEDDING, **some)
        for some in ({}, dict(mask_BT=mask))
    )
    for found, expected in zip(chosen[0][1], every[0][1], strict=True):
        np.testing.assert_allclose(found[mask > 0], expected[mask > 0], atol=1e-5)
        assert not found[mask == 0].any()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), chosen[1], every[1])


def test_large_logits_stay_finite():
    logprobs, entropy = token_logprobs(HIDDEN * 1e4, UNEMBEDDING, TARGETS, 1.0)
    assert np.isfinite(logprobs).all()
    assert np.isfinite(entropy).all()


def test_memory_has_no_term_in_tokens_times_vocabulary():
    def temporaries(tokens, vocabulary, chunk=64):
        shapes = (
            jax.ShapeDtypeStruct(s, d)
            for s, d in (((1, tokens, D), "float32"), ((vocabulary, D), "float32"), ((1, tokens), "int32"))
        )

        def loss(hidden, unembedding, targets):
            logprobs, entropy = token_logprobs(hidden, unembedding, targets, 1.0, chunk=chunk)
            return (logprobs + entropy).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, long = temporaries(512, 4096), temporaries(2048, 4096)
    assert long - small < 1536 * 4 * 40 * D  # a few arrays of hidden states
    assert long < 2048 * 4096 * 4 / 4  # a quarter of one [T, V] array


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_unembeddings_gradient_is_summed_over_chunks_in_float32(dtype):
    """Over 512 chunks, of hidden states and an unembedding that the dtype holds, so that only sums could be rounded."""
    many, width = 4096, 16
    hidden = jnp.asarray(rng.normal(size=(1, many, width)) + 1, dtype)
    unembedding = np.asarray(jnp.asarray(UNEMBEDDING[:, :1] * np.ones(width), dtype), np.float32)
    targets = rng.integers(0, V, (1, many)).astype(np.int32)

    def gradient(hidden, **settings):
        return jax.grad(lambda kernel: token_logprobs(hidden, kernel, targets, **settings)[0].sum())(unembedding)

    found, expected = gradient(hidden, chunk=8), gradient(hidden.astype(jnp.float32))
    assert found.dtype == jnp.float32
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
