"""Run by test_offload.py on 4 simulated devices: whether updates with all offloaded have the same bits."""

import json

import jax
import numpy as np
from flax import linen as nn

from configs.base import get_config
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import init_params
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rows import row_groups
from polaris_jax.training.state import init_state
from polaris_jax.training.update import make_update

MODEL = ModelConfig(64, 32, 48, 5, 4, 2, 8, rope_theta=100.0, dtype="float32")  # so many layers run in a loop
MESHES = (dict(fsdp=4), dict(fsdp=2, tensor=2), dict(fsdp=2, context=2))


def updated(mesh, offload):
    """The state after two updates on ragged sequences."""
    config, rng = get_config(), np.random.default_rng(0)
    config.updates.row_lengths, config.updates.rows = (64,), 4
    config.optimizer.offload, config.optimizer.learning_rate = offload, 1e-2
    model = MODEL.replace(remat="offload" if offload else "full")
    params = jax.tree.map(np.asarray, nn.unbox(init_params(model, jax.random.key(0))))
    state, update = init_state(model, config, mesh, params), make_update(model, config, mesh)
    lengths = rng.integers(3, 40, 12)
    sequences = [
        Sequence(rng.integers(0, 64, n).astype(np.int32), np.ones(n, np.float32), float(rng.normal()), np.zeros(n))
        for n in lengths
    ]
    for _ in range(2):
        state, _ = update(state, pack(sequences, config.updates, groups=row_groups(mesh))[0], 1.0)
    return state


def main():
    for shape in MESHES:
        mesh = make_mesh(shape, jax.devices())
        found, expected = updated(mesh, True), updated(mesh, False)
        kinds = sorted({x.sharding.memory_kind for x in jax.tree.leaves(found.opt_state.inner)})
        pairs = zip(*(jax.tree.leaves(jax.device_get(x)) for x in (found, expected)), strict=True)
        equal = all(np.array_equal(x, y) for x, y in pairs)
        print(json.dumps({"mesh": shape, "equal": equal, "kinds": kinds}), flush=True)


if __name__ == "__main__":
    main()
