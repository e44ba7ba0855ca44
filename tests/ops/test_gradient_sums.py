"""Gradients that are added where earlier ones lie are the gradients, and need no second array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from polaris_jax.models.presets import ModelConfig
from polaris_jax.rl.losses import batch_loss
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import sharded_params
from polaris_jax.training.update import make_accumulate, make_logprobs

MODEL = ModelConfig(61, 32, 48, 6, 4, 2, 8, rope_theta=100.0, dtype="float32", qk_norm=False, attention_bias=True)


@pytest.fixture(scope="module")
def rows():
    rng, config = np.random.default_rng(0), get_config()
    config.updates.row_lengths, config.updates.rows = (64,), 2
    made = []
    for n in (5, 17, 30, 40):
        mask, logprobs = (np.arange(n) > n // 3).astype(np.float32), np.full(n, -4, np.float32)
        made.append(Sequence(rng.integers(0, 60, n).astype(np.int32), mask, float(rng.normal()), logprobs))
    return pack(made, config.updates)[0][0]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tie_word_embeddings": False, "remat": "full"},
        {"dtype": "bfloat16", "remat": "dots"},
        {"num_hidden_layers": 2},
    ],
    ids=str,
)
def test_the_gradient_is_added_to_what_there_is(change, rows):
    model, config, mesh = MODEL.replace(**change), get_config(), make_mesh({}, jax.devices()[:1])
    params, before = (sharded_params(model, mesh, seed) for seed in (0, 1))
    logprobs = make_logprobs(model, mesh)

    def loss(params):
        return batch_loss(*logprobs(params, rows, jnp.float32(0.8)), rows, config, 0.1)[0] * (3.0 / 7.0)

    expected = jax.jit(jax.grad(loss))(params)
    numbers = map(jnp.float32, (0.8, 3, 7, 0.1))
    found, _ = make_accumulate(model, config, mesh)(jax.tree.map(jnp.copy, before), params, rows, *numbers)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    close = dict(rtol=1e-5, atol=1e-6 + 1e-5 * largest)
    jax.tree.map(lambda x, y, z: np.testing.assert_allclose(x - y, z, **close), found, before, expected)
    assert largest > 1e-3


def test_no_second_gradient_is_made():
    """Of a model whose layers are most of it, for a row of few tokens."""
    model = MODEL.replace(hidden_size=128, intermediate_size=1024, num_hidden_layers=12, remat="full")
    config, mesh = get_config(), make_mesh({}, jax.devices()[:1])
    params = sharded_params(model, mesh, 0)
    config.updates.row_lengths, config.updates.rows = (16,), 1
    (rows, *_), _ = pack([Sequence(np.arange(9, dtype=np.int32), np.ones(9, np.float32))], config.updates)
    accumulate, numbers = make_accumulate(model, config, mesh), [jnp.float32(1)] * 4
    memory = accumulate.lower(params, params, rows, *numbers).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= sum(x.nbytes for x in jax.tree.leaves(params))
    assert memory.temp_size_in_bytes < sum(x.nbytes for x in jax.tree.leaves(params)) / 3
