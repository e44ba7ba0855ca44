"""Rotary tables against transformers' at the real sizes, up to the longest position that the recipe generates."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from polaris_jax import hf
from polaris_jax.models.presets import PRESETS, Yarn
from polaris_jax.models.rope import apply_rope, inverse_frequencies, rope_tables

torch = pytest.importorskip("torch")

ULP = np.finfo(np.float32).eps


@pytest.mark.parametrize("preset", ["qwen3-4b", "r1-distill-qwen-7b"])
@pytest.mark.parametrize("yarn", [None, Yarn(1.5, 40_960, attention_factor=1.0), Yarn(4.0, 32_768)])
def test_tables_equal_transformers(preset, yarn):
    config = PRESETS[preset].replace(yarn=yarn)
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    longest = 40_960
    if yarn is not None:
        longest = int(yarn.factor * yarn.original_max_position_embeddings)
        rope |= {"rope_type": "yarn", "factor": yarn.factor, "attention_factor": yarn.attention_factor}
        rope |= {"original_max_position_embeddings": yarn.original_max_position_embeddings}
    theirs = transformers.Qwen3Config(head_dim=128, rope_parameters=rope, max_position_embeddings=longest)
    rotary = Qwen3RotaryEmbedding(theirs)
    np.testing.assert_array_max_ulp(inverse_frequencies(config)[0], rotary.inv_freq.numpy(), maxulp=2)
    positions = np.array([[0, 1, 1000, 39_936, 90_000]], np.int32)
    cos, sin = (table.numpy()[0] for table in rotary(torch.zeros(1, 1), torch.tensor(positions).long()))
    sin[:, :64] *= -1
    angles = positions[0, :, None] * np.tile(rotary.inv_freq.numpy(), 2)
    for found, table in zip(rope_tables(jnp.asarray(positions), config), (cos, sin), strict=True):
        gap = np.abs(np.asarray(found)[0, :, 0] - table)
        assert np.all(gap <= 1e-5 + 2 * ULP * angles)  # float32 powers differ between processors


YARN = {"rope_type": "yarn", "factor": 4.0}
LENGTH = {"original_max_position_embeddings": 32_768}
SETTINGS = [  # of config.json, as transformers before 5 and from 5 on save them, and as users change them
    {"rope_theta": 1e6},
    {"rope_theta": 1e6, "rope_scaling": YARN | LENGTH},
    {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}},
    {"rope_parameters": YARN | LENGTH | {"rope_theta": 1e6}},
    {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN | LENGTH},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_scaling": YARN | {"rope_theta": 1e6}},
    {"rope_theta": 1e6, "rope_parameters": YARN | LENGTH, "rope_scaling": {"rope_type": "default"}},
    {"rope_theta": 1e6, "rope_parameters": YARN | LENGTH, "rope_scaling": {}},
    {"rope_theta": 1e6, "rope_parameters": YARN | LENGTH, "rope_scaling": YARN | LENGTH | {"factor": 2.0}},
    {"rope_theta": 1e6, "rope_scaling": YARN} | LENGTH,
    {"rope_theta": 1e6, "rope_scaling": YARN | {"original_max_position_embeddings": 16_384}} | LENGTH,
    {"rope_theta": 1e6, "rope_scaling": LENGTH | {"rope_type": "yarn", "factor": None}},
    {"rope_theta": 1e6, "layer_types": ["full_attention"] * 2, "rope_parameters": {"full_attention": YARN | LENGTH}},
    *({"rope_theta": 1e6, "rope_scaling": YARN | LENGTH | more} for more in (
        {"attention_factor": 1.0}, {"attention_factor": 0.8}, {"attention_factor": None}, {"mscale": 0.7},
        {"mscale": 0.7, "mscale_all_dim": 0.5}, {"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale_all_dim": 1.0},
        {"mscale": 1.0, "mscale_all_dim": 0}, {"mscale": 0.7, "mscale_all_dim": 0.5, "attention_factor": 1.1},
        {"beta_fast": 16, "beta_slow": 2}, {"beta_fast": None}, {"factor": 1.0}, {"truncate": True},
    )),
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_mean_what_they_mean_to_transformers(settings):
    sizes = dict(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=128, max_position_embeddings=131_072,
    )  # fmt: skip
    config = hf.config_from_hf({"model_type": "qwen3"} | sizes | settings)
    theirs = transformers.Qwen3Config(**sizes, **copy.deepcopy(settings))  # which it changes
    if "full_attention" in theirs.rope_parameters:
        theirs.rope_parameters = theirs.rope_parameters["full_attention"]
    rotary = Qwen3RotaryEmbedding(theirs)
    frequencies, factor = inverse_frequencies(config)
    np.testing.assert_array_max_ulp(frequencies, rotary.inv_freq.numpy(), maxulp=4)  # powers differ in the last bits
    assert factor == pytest.approx(rotary.attention_scaling, rel=1e-12)


def test_yarn_keeps_fast_rotations_and_slows_the_slow_ones():
    config = PRESETS["qwen3-4b"]
    plain, _ = inverse_frequencies(config)
    scaled, factor = inverse_frequencies(config.replace(yarn=Yarn(1.5, 40_960)))
    ratio = plain / scaled
    np.testing.assert_allclose(ratio[:10], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[-10:], 1.5, rtol=1e-6)
    assert np.all(np.diff(ratio) > -1e-6)
    assert factor == pytest.approx(0.1 * np.log(1.5) + 1)


def test_scores_depend_on_the_distance_only():
    config = PRESETS["tiny"]
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, config.head_dim)).astype(np.float32)

    def score(i, j):
        rotated = [apply_rope(x, *rope_tables(jnp.array([[p]]), config)) for x, p in ((q, i), (k, j))]
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-2)
