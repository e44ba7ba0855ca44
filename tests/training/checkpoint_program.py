"""On eight devices: restores a checkpoint that one saved, and saves one over all eight. Run by test_checkpoint.py."""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from polaris_jax.data.curriculum import Curriculum
from polaris_jax.training.checkpoint import Checkpoints
from polaris_jax.training.host import HostState
from polaris_jax.types import Rollout, Solution

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.training.test_checkpoint import assert_same, settings, state_at

assert jax.device_count() == 8
mesh = jax.make_mesh((8,), ("fsdp",))


def placed(state):
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*["fsdp"] * x.ndim))),
        state,
    )


with Checkpoints(Path(sys.argv[1]), settings()) as checkpoints:
    state, _ = checkpoints.restore(placed(state_at(0)))
    assert_same(state, state_at(1))
    assert len(state.params["w"].addressable_shards) == 8
solution = Rollout("p", 0, np.array([1, 2], np.int32), np.array([3, 4, 5], np.int32), np.zeros(3, np.float16), "stop")
with Checkpoints(Path(sys.argv[2]), settings()) as checkpoints:
    checkpoints.save(placed(state_at(2)), HostState(Curriculum(solutions={"p": Solution(solution, 1.0)})))
