"""Adapters: what they compute, how they are merged, and that their base stays what it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models.lora import checksum, freeze, join, merge, split
from polaris_jax.models.presets import LORA_TARGETS, PRESETS, Lora, ModelConfig
from polaris_jax.models.quantise import CODES, quantise
from polaris_jax.models.transformer import Transformer, unstack
from polaris_jax.ops.matmul import frozen_matmul
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import param_shapes, sharded_adapters, sharded_params

MODEL = ModelConfig(64, 32, 48, 2, 4, 2, 8, rope_theta=100.0, dtype="float32")
QWEN2 = MODEL.replace(qk_norm=False, attention_bias=True, tie_word_embeddings=False, num_hidden_layers=5)
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 20)).astype(np.int32)


def with_lora(model, rank=3, alpha=6.0, targets=LORA_TARGETS, weights=""):
    return model.replace(lora=Lora(rank, alpha, targets, weights))


def random_params(model, seed=0):
    """All of the model's parameters on one device, adapters far from 0."""
    params = sharded_params(model, make_mesh({}, jax.devices()[:1]), seed)
    adapters, base = split(params)
    rng = np.random.default_rng(seed)
    return join(jax.tree.map(lambda x: jnp.float32(0.3 * rng.normal(size=x.shape)), adapters), base)


def hidden(model, params):
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    return jax.jit(Transformer(model).apply)({"params": params}, TOKENS, positions, jnp.ones_like(TOKENS))[0]


@pytest.mark.parametrize(
    ("model", "weights", "targets"),
    [(MODEL, "", LORA_TARGETS), (QWEN2, "int8", ("q_proj", "down_proj")), (QWEN2, "fp8", LORA_TARGETS)],
)
def test_merged_the_model_computes_what_it_does_with_adapters(model, weights, targets):
    adapted = with_lora(model, targets=targets, weights=weights)
    params = random_params(adapted)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), param_shapes(adapted)
    )
    found, merged = hidden(adapted, params), merge(params, adapted.lora)
    np.testing.assert_allclose(hidden(model, merged), found, atol=1e-4)
    in_a_list = merge(params | {"layers": unstack(params["layers"])}, adapted.lora)
    np.testing.assert_allclose(hidden(model, in_a_list), found, atol=1e-4)
    assert np.abs(hidden(adapted, split(params)[1]) - found).max() > 0.1  # without adapters: the base


def test_at_first_adapters_change_nothing_and_a_base_in_bfloat16_computes_what_float32_does():
    """Where weights are used they are cast to the compute dtype anyway."""
    model = MODEL.replace(dtype="bfloat16")
    adapted, mesh = with_lora(model), make_mesh({}, jax.devices()[:1])
    params = sharded_params(model, mesh, 0)
    frozen = freeze(params, adapted)
    assert {x.dtype for x in jax.tree.leaves(frozen)} == {jnp.bfloat16.dtype}
    adapters = sharded_adapters(adapted, mesh, 0)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(adapters["layers"]["mlp"]["up"]["lora_a"]))
    np.testing.assert_array_equal(hidden(adapted, join(adapters, frozen)), hidden(model, params))


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("v_proj",)])
def test_what_is_trained_is_what_the_targets_say(targets):
    shapes = param_shapes(with_lora(PRESETS["qwen3-0.6b"], rank=16, targets=targets))
    trained, frozen = split(shapes)
    assert set(jax.tree.leaves(jax.tree.map(lambda x: x.dtype, trained))) == {jnp.float32.dtype}
    count = sum(x.size for x in jax.tree.leaves(trained))
    assert count == with_lora(PRESETS["qwen3-0.6b"], rank=16, targets=targets).num_adapter_parameters
    assert (
        count
        == {7: 28 * 16 * (3 * 1024 + 2 * 2048 + 2 * 1024 + 1024 + 3 * (1024 + 3072)), 1: 28 * 16 * 2048}[len(targets)]
    )
    assert sum(x.size for x in jax.tree.leaves(frozen)) == PRESETS["qwen3-0.6b"].num_parameters
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(shapes)
    assert split(frozen) == (frozen, {})


@pytest.mark.parametrize("weights", ["", *CODES])
def test_a_frozen_product_has_the_gradient_of_its_input(weights):
    rng = np.random.default_rng(0)
    x, kernel, d_out = (jnp.float32(rng.normal(size=shape)) for shape in ((5, 8), (8, 6), (5, 6)))
    made = quantise(kernel, weights) if weights else {"kernel": kernel}
    decoded = made["kernel"].astype(jnp.float32) * made.get("kernel_scale", 1.0)
    found, backward = jax.vjp(lambda x: frozen_matmul(x, made["kernel"], made.get("kernel_scale")), x)
    np.testing.assert_allclose(found, x @ decoded, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(backward(d_out)[0], d_out @ decoded.T, rtol=1e-5, atol=1e-5)


def test_a_checksum_tells_one_base_from_another():
    base = sharded_params(MODEL, make_mesh({}, jax.devices()[:1]), 0)
    kernel = base["layers"]["mlp"]["up"]["kernel"]
    others = [
        kernel.at[1, 3, 4].add(1e-6),
        kernel[::-1],
        jnp.swapaxes(kernel.reshape(2, 48, 32), 1, 2),
        kernel[:, ::-1],
    ]
    found = {checksum(base)}
    for other in others:
        mlp = base["layers"]["mlp"] | {"up": {"kernel": other}}
        found.add(checksum(base | {"layers": base["layers"] | {"mlp": mlp}}))
    assert len(found) == 5
    assert checksum(jax.tree.map(jnp.copy, base)) == checksum(base)
