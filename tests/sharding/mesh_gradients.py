"""Run by the tests: prints the largest relative error of the gradient on each mesh against one device.

mesh_gradients.py                                 8 simulated devices of one process
mesh_gradients.py ADDRESS PROCESS PROCESSES       one of several processes with 2 devices each
"""

import json
import sys

import jax
import numpy as np
import optax
from flax import linen as nn

from configs.base import get_config
from polaris_jax.models.lora import freeze, join, split
from polaris_jax.models.presets import LORA_TARGETS, Lora, ModelConfig
from polaris_jax.models.transformer import init_params
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rows import row_groups
from polaris_jax.training.state import init_state
from polaris_jax.training.update import make_update

MODEL = ModelConfig(64, 32, 48, 2, 8, 4, 8, rope_theta=100.0, dtype="float32", known_tokens=60)
MESHES = (
    dict(data=2), dict(fsdp=2), dict(tensor=2), dict(context=2),
    dict(data=2, fsdp=2), dict(tensor=2, context=2), dict(fsdp=2, context=2), dict(fsdp=4),
    dict(data=8), dict(fsdp=8), dict(tensor=8), dict(context=8),
    dict(data=2, fsdp=2, tensor=2), dict(fsdp=2, tensor=2, context=2), dict(data=2, tensor=2, context=2),
    dict(data=2, fsdp=2, context=2), dict(tensor=4, context=2), dict(data=2, context=4),
)  # fmt: skip
LORA = MODEL.replace(lora=Lora(4, 8.0, LORA_TARGETS, "int8"))
LORA_MESHES = dict(tensor=8), dict(data=2, fsdp=2), dict(fsdp=2, tensor=2, context=2)


def sequences():
    """12 ragged sequences, one of them off-policy."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(12):
        n = int(rng.integers(3, 40))
        mask = np.ones(n, np.float32)
        mask[: n // 3] = 0
        logprobs = (-4 + rng.normal(0, 0.1, n)).astype(np.float32)
        made.append(Sequence(rng.integers(0, 60, n).astype(np.int32), mask, float(rng.normal()), logprobs, i == 3))
    return made


def random_params(model):
    params = freeze(nn.unbox(init_params(model, jax.random.key(0))), model)
    if model.lora is None:
        return params
    adapters, base = split(params)
    return join(jax.tree.map(lambda x: x + 0.05, adapters), base)


def first_moment(model, mesh):
    """The gradient of one update, as Adam's first moment (the gradient times 1 - b1), gathered on every host."""
    config = get_config()
    config.updates.row_lengths, config.updates.rows = (64,), 4
    config.optimizer.clip_norm = 0.0
    config.algorithm.entropy, config.algorithm.mask_drifted_negative = 0.1, 0.1
    state = init_state(model, config, mesh, jax.tree.map(np.asarray, random_params(model)))
    batches, _ = pack(sequences(), config.updates, groups=row_groups(mesh))
    state, metrics = make_update(model, config, mesh)(state, batches, 0.9)
    gather = jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    moment = optax.tree.get(state.opt_state, "mu")
    return jax.tree.map(lambda m: np.asarray(gather(m).addressable_data(0)), moment), metrics


def main():
    if len(sys.argv) > 1:
        address, process, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, processes, process)
        cases = (MODEL, (dict(data=2, fsdp=2), dict(fsdp=2, context=2), dict(tensor=4))), (LORA, (dict(fsdp=4),))
    else:
        cases = (MODEL, MESHES), (LORA, LORA_MESHES)
    for model, meshes in cases:
        alone, metrics = first_moment(model, make_mesh({}, jax.local_devices()[:1]))
        for shape in meshes:
            size = int(np.prod(list(shape.values())))
            found, other = first_moment(model, make_mesh(shape, jax.devices()[:size]))
            errors = jax.tree.map(lambda x, y: float(np.linalg.norm(x - y) / np.linalg.norm(y)), found, alone)
            loss = abs(other["loss"] - metrics["loss"]) / abs(metrics["loss"])
            print(json.dumps({"mesh": shape, "gradient": max(jax.tree.leaves(errors)), "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
