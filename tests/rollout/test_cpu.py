"""The model gives the same with the parameters as a CPU lays them out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import Transformer, unrolled
from polaris_jax.rollout import cpu, platforms
from polaris_jax.rollout.weight_sync import WeightSync
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import sharded_params

QWEN2 = ModelConfig(61, 32, 48, 2, 4, 2, 8, qk_norm=False, attention_bias=True, tie_word_embeddings=False)


@pytest.mark.parametrize("layers", [2, 6])
@pytest.mark.parametrize("weights", ["", "int8"])
def test_laid_out_parameters_give_the_same_logits(layers, weights):
    model, mesh = QWEN2.replace(num_hidden_layers=layers, dtype="float32"), make_mesh(devices=jax.devices()[:1])
    params = sharded_params(model, mesh, 0)
    params = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), params)  # biases, too
    (params,) = WeightSync(model, mesh, [mesh], weights)(params)
    laid = cpu.lay_out(model, params)
    assert isinstance(laid["layers"], list) == unrolled(model)
    tokens = np.random.default_rng(0).integers(0, 61, (3, 7)).astype(np.int32)

    def run(project, logits, params):
        spot = jnp.broadcast_to(jnp.arange(7), (3, 7))
        hidden, _ = Transformer(model, project=project).apply({"params": params}, tokens, spot, jnp.ones_like(tokens))
        return logits(model, params, hidden)

    plain = run(platforms.Platform("cpu").project, platforms.logits, params)
    np.testing.assert_allclose(run(cpu.project_joined, cpu.logits, laid), plain, rtol=1e-4, atol=1e-5)
