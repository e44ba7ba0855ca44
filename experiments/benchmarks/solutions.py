"""Bytes that each checkpoint writes for the rescue's solutions, beside those of all that it holds: one JSON line.

    python experiments/benchmarks/solutions.py --problems=530 --tokens=1200

Two epochs over a hundredth of 53K problems with a tenth of 12K tokens: at each checkpoint 1 problem in 41 has a new
solution, as with 128 problems a step and 10 steps a checkpoint.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from polaris_jax import cli, files
from polaris_jax.rl.exploration import rollout_bytes
from polaris_jax.training import solutions
from polaris_jax.types import Rollout

PROBLEMS = flags.DEFINE_integer("problems", 530, "Of the dataset.")
TOKENS = flags.DEFINE_integer("tokens", 1200, "Of each solution.")
CHECKPOINTS = 41  # in an epoch


def solution(name: str, rng: np.random.Generator) -> Rollout:
    """A right response, as the rescue keeps it."""
    tokens = rng.integers(0, 150_000, TOKENS.value).astype(np.int32)
    return Rollout(name, 0, tokens[:100], tokens, np.zeros(TOKENS.value, np.float16), "stop")


def main(_: list[str]) -> None:
    """Saves and prints."""
    rng, found, before, source = np.random.default_rng(0), {}, {}, None
    written, held = [], []
    with tempfile.TemporaryDirectory() as directory:
        for step in range(2 * CHECKPOINTS):
            visited = [f"p{n}" for n in range(PROBLEMS.value) if n % CHECKPOINTS == step % CHECKPOINTS]
            new = {name: solution(name, rng) for name in visited if rng.random() < 0.7}
            found = {name: rollout for name, rollout in found.items() if name not in new} | new
            planned, target = solutions.plan(found, before, f"{step}.npz"), Path(directory) / str(step)
            target.mkdir()
            written.append(files.write_checksums(target, solutions.write(planned, source, target)))
            held.append(sum(map(rollout_bytes, found.values())))
            before, source = planned.files, target
    second = slice(CHECKPOINTS, None)
    line = {"solutions": len(found), "held_mib": held[-1] / 2**20, "all_at_each_mib": np.mean(held[second]) / 2**20}
    line |= {"written_mib": np.mean(written[second]) / 2**20, "most_written_mib": max(written[second]) / 2**20}
    print(json.dumps({name: round(float(value), 3) for name, value in line.items()}))


if __name__ == "__main__":
    cli.run(main)
