"""On a CPU the sampler of a deep float32 model reads the trainer's parameters where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import Transformer, unembed, unembedding
from polaris_jax.rollout import RolloutEngine, Sampling, cpu
from polaris_jax.rollout.layout import logits
from polaris_jax.rollout.weight_sync import WeightSync
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import sharded_params
from polaris_jax.types import Problem, Prompt

MODEL = ModelConfig(61, 64, 64, 6, 4, 2, 16, qk_norm=False, attention_bias=True, dtype="float32")


@pytest.fixture
def mesh():
    return make_mesh({}, jax.devices()[:1])


@pytest.fixture
def params(mesh):
    return sharded_params(MODEL, mesh, 0)


def pointers(tree):
    return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)]


def test_no_array_is_copied_but_the_unembedding(mesh, params):
    (shared,) = WeightSync(MODEL, mesh, [mesh])(params)
    assert len(shared["layers"]) == 6
    for layer, own in enumerate(shared["layers"]):
        offsets = [x.nbytes // 6 * layer for x in jax.tree.leaves(params["layers"])]
        starts = [start + offset for start, offset in zip(pointers(params["layers"]), offsets, strict=True)]
        assert pointers(own) == starts
    assert pointers(shared["embedding"]) == pointers(params["embedding"])


def test_the_model_gives_the_same(mesh, params):
    (shared,) = WeightSync(MODEL, mesh, [mesh])(params)
    tokens = np.random.default_rng(0).integers(0, 61, (3, 7)).astype(np.int32)
    spot = np.tile(np.arange(7, dtype=np.int32), (3, 1))

    def hidden(params):
        return Transformer(MODEL).apply({"params": params}, tokens, spot, jnp.ones_like(tokens))[0][:, -1]

    expected = unembed(hidden(params), unembedding(params, MODEL))
    np.testing.assert_allclose(logits(MODEL, shared, hidden(shared)), expected, rtol=1e-4, atol=1e-5)


def test_afterwards_the_update_may_write_where_the_parameters_lie(mesh, params):
    config = get_config().rollout
    config.update(slots=4, max_response_tokens=4, page_size=16, tokens_per_call=4)
    engine, prompts = RolloutEngine(MODEL, mesh, config), [Prompt(Problem("a", "", ()), np.arange(5, dtype=np.int32))]
    rollouts = list(engine.generate(params, prompts, 2, Sampling(max_response_tokens=4), 0))
    assert [len(r.tokens) for r in rollouts] == [4, 4]
    before = pointers(params)
    update = jax.jit(lambda params: jax.tree.map(lambda x: 2 * x, params), donate_argnums=0)
    assert pointers(update(params)) == before


@pytest.mark.parametrize(
    ("change", "weights", "shared"),
    [({}, "", True), ({}, "int8", False), ({"dtype": "bfloat16"}, "", False), ({"num_hidden_layers": 4}, "", False)],
)
def test_when_they_are_shared(mesh, change, weights, shared):
    assert cpu.shares(MODEL.replace(**change), mesh, weights) == shared
