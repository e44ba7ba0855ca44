"""The model gives the same with the parameters as the sampler lays them out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.quantise import map_kernels, quantise
from polaris_jax.models.transformer import Transformer
from polaris_jax.rollout.layout import laid_shardings, lay_out, logits
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import param_shardings, sharded_params

QWEN2 = ModelConfig(61, 32, 48, 2, 4, 2, 8, qk_norm=False, attention_bias=True, tie_word_embeddings=False)
TOKENS = np.random.default_rng(0).integers(0, 61, (3, 7)).astype(np.int32)


@pytest.mark.parametrize(("layers", "weights"), [(2, ""), (6, ""), (6, "int8")])
def test_laid_out_parameters_give_the_same_logits(layers, weights):
    model, mesh = QWEN2.replace(num_hidden_layers=layers, dtype="float32"), make_mesh(devices=jax.devices()[:1])
    params = sharded_params(model, mesh, 0)
    params = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), params)  # biases, too
    if weights:
        params = map_kernels(params, lambda kernel: quantise(kernel, weights))

    @jax.jit
    def run(params):
        spot = jnp.broadcast_to(jnp.arange(7), (3, 7))
        hidden, _ = Transformer(model).apply({"params": params}, TOKENS, spot, jnp.ones_like(TOKENS))
        return logits(model, params, hidden)

    plain = run(params)
    for options in (dict(join=True, transpose=True), dict(join=False, transpose=False)):
        np.testing.assert_allclose(run(lay_out(model, params, **options)), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("join", [True, False])
def test_shardings_have_the_form_of_the_parameters(join):
    mesh = make_mesh(devices=jax.devices()[:1])
    params, shardings = sharded_params(QWEN2, mesh, 0), param_shardings(QWEN2, mesh)
    laid, where = lay_out(QWEN2, params, join=join, transpose=True), laid_shardings(
        QWEN2, shardings, join=join, transpose=True
    )  # fmt: skip
    jax.tree.map(lambda x, sharding: sharding.shard_shape(x.shape), laid, where)
