"""Rotary tables against transformers' at the real sizes, up to the longest position that the recipe generates."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from polaris_jax.models.presets import PRESETS, Yarn
from polaris_jax.models.rope import apply_rope, inverse_frequencies, rope_tables

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
