"""Two steps of the loop on eight devices, 4 x fsdp and 2 x tensor, in the directory given: run by test_loop.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import EvenLengthPool, smaller_config

from polaris_jax.training import loop, start

start.ARITHMETIC_PROBLEMS = 64
loop.verifier_pool = lambda config: EvenLengthPool()
config = smaller_config(**{"training.steps": 2, "rollout.prompts": 8, "mesh.fsdp": 4, "mesh.tensor": 2})
loop.run(config, sys.argv[1])
