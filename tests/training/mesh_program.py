"""Two steps of the loop on eight devices in the directory given, each a stage with a mesh of its own.

Run by test_loop.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import EvenLengthPool, smaller_config

from polaris_jax.runs import start
from polaris_jax.training import loop

start.ARITHMETIC_PROBLEMS = 64
loop.verifier_pool = lambda config: EvenLengthPool()
stages = (
    {"steps": 1, "mesh.fsdp": 4, "mesh.tensor": 2},
    {"steps": 1, "mesh.data": 2, "mesh.fsdp": 2, "mesh.context": 2},
)
config = smaller_config(**{"stages": stages, "rollout.prompts": 8, "data.drop_above": 1.0})
loop.run(config, sys.argv[1])
