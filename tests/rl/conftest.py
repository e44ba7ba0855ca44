"""A tiny model, ragged groups of rollouts for it, and gradients of the policy loss on one device."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from configs.base import get_config
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import init_params
from polaris_jax.rl.losses import divisor
from polaris_jax.rl.packing import from_rollouts, pack
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rows import put_rows
from polaris_jax.training.update import make_gradient
from polaris_jax.types import Group, Problem, Rollout

MODEL = ModelConfig(64, 32, 48, 1, 4, 2, 8, rope_theta=100.0, dtype="float32")


@pytest.fixture(scope="session")
def model():
    return MODEL


@pytest.fixture(scope="session")
def params():
    return jax.jit(lambda key: nn.unbox(init_params(MODEL, key)))(jax.random.key(0))


@pytest.fixture
def config():
    c = get_config()
    c.updates.row_lengths = (64,)
    c.updates.rows = 4
    return c


@pytest.fixture(scope="session")
def groups():
    """3 groups of 4 rollouts of 1 to 40 tokens, with log-probs a little off the model's."""
    return make_groups()


def make_groups(groups=3, samples=4, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for n in range(groups):
        prompt = rng.integers(0, 64, rng.integers(1, 12)).astype(np.int32)
        rollouts = []
        for sample in range(samples):
            length = int(rng.integers(1, longest))
            tokens = rng.integers(0, 64, length).astype(np.int32)
            logprobs = (-np.log(64) + rng.normal(0, 0.2, length)).astype(np.float32)
            rollouts.append(Rollout(str(n), sample, prompt, tokens, logprobs, "stop"))
        rewards = rng.random(samples).astype(np.float32)
        made.append(Group(Problem(str(n), "", ("",)), tuple(rollouts), rewards, rewards > 0.5))
    return made


@pytest.fixture(scope="session")
def sequences(groups):
    return from_rollouts(groups, np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32))


def policy_gradient(
    params, sequences, config, *, temperature=0.8, model=MODEL, batches=None, loss_scale=1, entropy=0.0
):
    """Gradient and loss of the whole batch; on one device."""
    mesh = make_mesh({}, jax.devices()[:1])
    batches = batches or pack(sequences, config.updates)[0]
    rows = [put_rows(batch, mesh) for batch in batches]
    count = divisor(batches, config)
    gradient = make_gradient(model, config, mesh)
    grads, (sums, _) = gradient(
        params, rows, np.float32(temperature), np.float32(loss_scale), count, np.float32(entropy)
    )
    return jax.tree.map(lambda g: np.asarray(g) / loss_scale, grads), float(sums["loss"] / count)


def relative_error(found, expected):
    """Largest over the arrays of |found - expected| / |expected|, Euclidean norms."""
    errors = jax.tree.map(lambda x, y: np.linalg.norm(x - y) / (np.linalg.norm(y) + 1e-12), found, expected)
    return max(jax.tree.leaves(errors))
