"""Weights in 8 bits: how far they are from the trainer's, what they take, and that the whole sampler runs on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from polaris_jax.models.quantise import CODES, quantise, weight_bytes
from polaris_jax.models.transformer import Transformer
from polaris_jax.plan.ahead import lower_sampling
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.rollout.layout import logits
from polaris_jax.rollout.weight_sync import WeightSync
from tests.rollout.conftest import MODEL, random_prompts, rollout_config, trainer_logits


@pytest.fixture(scope="module")
def synced(params, mesh):
    return {weights: WeightSync(MODEL, mesh, [mesh], weights)(params)[0] for weights in ("", *CODES)}


@pytest.mark.parametrize("weights", CODES)
def test_a_weight_comes_back_within_half_a_step_of_its_channel(weights):
    kernel = np.random.default_rng(0).normal(size=(3, 64, 16)).astype(np.float32)
    kernel *= np.logspace(-6, 6, 16, dtype=np.float32)  # channels far apart do not disturb each other
    kernel[1, :, 5] = 0
    found = quantise(jnp.asarray(kernel), weights)
    assert found["kernel"].dtype == CODES[weights][0]
    scale = np.asarray(found["kernel_scale"])[:, None]
    error = np.abs(np.asarray(found["kernel"], np.float32) * scale - kernel)
    step = scale if weights == "int8" else np.maximum(np.abs(kernel) / 8, scale / 512)
    assert (error <= step / 2 * (1 + 1e-5)).all()
    assert (error > 0).any()
    np.testing.assert_allclose(np.abs(kernel).max(axis=1), CODES[weights][1] * scale[:, 0], rtol=1e-6)


@jax.jit
def logprobs_of(params, tokens_BT):
    """log p of the next token at every position, float32 [B, T, V]."""
    positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    hidden, _ = Transformer(MODEL).apply({"params": params}, tokens_BT, positions, jnp.ones_like(tokens_BT))
    return jax.nn.log_softmax(logits(MODEL, params, hidden))


@pytest.mark.parametrize("weights", CODES)
def test_logits_stay_close(weights, synced):
    tokens = np.random.default_rng(0).integers(0, 61, (4, 64)).astype(np.int32)
    exact, found = logprobs_of(synced[""], tokens), logprobs_of(synced[weights], tokens)
    kl = jnp.sum(jnp.exp(exact) * (exact - found), axis=-1)
    assert 0 < kl.mean() < {"int8": 1e-3, "fp8": 1e-2}[weights]


def tree_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("weights", CODES)
def test_projections_take_a_quarter_of_float32(weights, synced):
    for kernels, plain in zip(synced[weights]["layers"], synced[""]["layers"], strict=True):
        for block, names in (("attention", ("joined", "o")), ("mlp", ("joined", "down"))):
            for name in names:
                assert kernels[block][name]["kernel"].nbytes * 4 == plain[block][name]["kernel"].nbytes
    total, plain = (tree_bytes(synced[w]) - synced[w]["scorer_DV"].nbytes for w in (weights, ""))
    assert total == pytest.approx(weight_bytes(MODEL, weights), rel=0.15)  # norms and scales, of channels of 32 inputs
    assert plain == weight_bytes(MODEL, "")


def test_the_engine_records_the_logprobs_of_the_quantised_model(params, mesh, synced):
    engine = RolloutEngine(MODEL, mesh, rollout_config(weights="int8"))
    for rollout in engine.generate(params, random_prompts(3), 1, Sampling(max_response_tokens=20), 1):
        quantised, exact = (
            jax.nn.log_softmax(trainer_logits(MODEL, synced[w], rollout))[np.arange(20), rollout.tokens]
            for w in ("int8", "")
        )
        np.testing.assert_allclose(rollout.logprobs, quantised, atol=1e-4)
        assert np.abs(rollout.logprobs - exact).max() > 1e-3


def test_a_run_with_them_lowers_ahead_of_time(mesh):
    config = get_config()
    config.rollout.update(weights="fp8", slots=4, max_response_tokens=64)
    lowered = lower_sampling(MODEL, config, mesh)
    assert "f8E4M3FN" in lowered["weight_sync"].as_text()
    assert "f8E4M3FN" in lowered["decode"].as_text()
