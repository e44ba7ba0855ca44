"""Run by test_many_hosts.py: the recipe on a tiny model, as one process or as one of several.

run_of_many.py --workdir=DIR [--coordinator=localhost:PORT --num_processes=2 --process_id=0]
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from absl import flags

from polaris_jax import cli
from polaris_jax.evaluation import difficulty, job
from polaris_jax.runs import start
from polaris_jax.runs.compilation import enable_compilation_cache
from polaris_jax.training import loop, recipe
from tests.conftest import EvenLengthPool, smaller_config

WORKDIR = flags.DEFINE_string("workdir", None, "The recipe's directory.", required=True)
PRESET = flags.DEFINE_string("preset", "tiny", "The model.")
SETTINGS = {
    "sft.data": "",
    "difficulty.problems": 16,
    "difficulty.samples": 4,
    "training.steps": 8,
    "training.evaluate_every": 4,
    "algorithm.rescue": True,
    "mesh.data": 2,
}


class CountingPool(EvenLengthPool):
    """Knows how many responses it judged."""

    judged = 0

    def submit(self, response, answer):
        self.judged += 1
        return super().submit(response, answer)


def main(_):
    pool = CountingPool()
    for module in (difficulty, job, loop):
        module.verifier_pool = lambda config: pool
    start.ARITHMETIC_PROBLEMS = 64
    enable_compilation_cache(Path(WORKDIR.value).with_name("compiled"))
    recipe.run(smaller_config(**SETTINGS, **{"model.preset": PRESET.value}), WORKDIR.value)
    print(json.dumps({"judged": pool.judged}))


if __name__ == "__main__":
    cli.run(main)
