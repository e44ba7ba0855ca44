"""The presets have the published shapes."""

import jax
import pytest
from flax import linen as nn

from polaris_jax.models.presets import PRESETS
from polaris_jax.models.transformer import init_params

# What the published checkpoints hold, tied embeddings counted once.
PUBLISHED = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "r1-distill-qwen-1.5b": 1_777_088_000,
    "r1-distill-qwen-7b": 7_615_616_512,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters_is_the_published_one(name):
    assert PRESETS[name].num_parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters_is_that_of_the_tree(name):
    tree = nn.unbox(jax.eval_shape(lambda: init_params(PRESETS[name], jax.random.key(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == PRESETS[name].num_parameters
