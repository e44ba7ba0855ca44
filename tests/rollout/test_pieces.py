"""The sampler's parameters in pieces are the same parameters."""

import jax
import numpy as np
import pytest

from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import UNROLLED_LAYERS
from polaris_jax.rollout.programs import in_pieces, whole
from polaris_jax.rollout.weight_sync import HandOver
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import sharded_params

QWEN2 = ModelConfig(61, 32, 48, 2, 4, 2, 8, qk_norm=False, attention_bias=True, tie_word_embeddings=False)


@pytest.mark.parametrize("layers", [2, 6])
@pytest.mark.parametrize("weights", ["", "int8"])
def test_pieces_put_together_are_the_parameters(layers, weights):
    model, mesh = QWEN2.replace(num_hidden_layers=layers, dtype="float32"), make_mesh(devices=jax.devices()[:1])
    (params,) = HandOver(model, mesh, [mesh], weights)(sharded_params(model, mesh, 0))
    pieces = in_pieces(model, params)
    apart = layers <= UNROLLED_LAYERS
    assert isinstance(pieces["layers"], list) == apart
    found = whole(model, pieces) if apart else pieces
    np.testing.assert_array_equal(found.pop("scorer_DV").T, params["unembedding"])
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
