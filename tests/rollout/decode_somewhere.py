"""Run by test_many_devices.py in processes of their own: prints a digest of what the engine gives on a mesh.

Usage: decode_somewhere.py MESH WEIGHTS [PROCESS PROCESSES PORT], MESH such as data=4,tensor=2, WEIGHTS "" or "int8".
"""

from __future__ import annotations

import hashlib
import sys

import jax

if len(sys.argv) > 3:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{sys.argv[5]}", int(sys.argv[4]), int(sys.argv[3]))

from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.rollout.codec import rollouts_of_others
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import sharded_params
from tests.rollout.conftest import MODEL, random_prompts, rollout_config

MODEL = MODEL.replace(vocab_size=64)  # which the tensor axis divides
shape = {axis: int(size) for axis, size in (part.split("=") for part in sys.argv[1].split(","))}
count = 1
for size in shape.values():
    count *= size
mesh = make_mesh(shape, jax.devices()[:count])
params = sharded_params(MODEL, mesh, 0)
params = jax.jit(lambda p: p | {"embedding": p["embedding"] * 15})(params)
engine = RolloutEngine(MODEL, mesh, rollout_config(slots=3, weights=sys.argv[2]))
sampling = Sampling(max_response_tokens=24, stop_ids=(3,))
rollouts = list(engine.generate(params, random_prompts(8), 2, sampling, 1))  # of this process
rollouts += rollouts_of_others(rollouts)
assert len(rollouts) == 16, len(rollouts)
found = sorted((r.problem_id, r.sample, r.finish_reason, r.tokens.tolist()) for r in rollouts)
print("digest", hashlib.sha256(repr(found).encode()).hexdigest())
