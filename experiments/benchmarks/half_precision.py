"""What a response depends on beside its address where the model computes in half precision: one JSON line a case.

    python experiments/benchmarks/half_precision.py --dtype=bfloat16

The tiny model (random weights, as unsure of every token as can be) samples the same responses again: repeated, with
fewer slots, and each half of the prompts alone. Printed: the share of responses with another token than in the first
run, the share of tokens at which the first other one comes (of all tokens up to there), the median place of it, and the
largest difference of log-probs before it.
"""

from __future__ import annotations

import json

import numpy as np
from absl import flags

from configs.base import get_config
from polaris_jax import cli
from polaris_jax.models.presets import PRESETS
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import sharded_params
from polaris_jax.types import Problem, Prompt, Rollout

DTYPE = flags.DEFINE_string("dtype", "bfloat16", "bfloat16, float16 or float32.")
TOKENS = flags.DEFINE_integer("tokens", 96, "Of each response.")
SAMPLES = 4
PROMPTS = 16

Found = dict[tuple[str, int], Rollout]


def main(_: list[str]) -> None:
    """Samples and prints."""
    model, mesh = PRESETS["tiny"].replace(dtype=DTYPE.value), make_mesh({"data": -1})
    params, rng = sharded_params(model, mesh, 0), np.random.default_rng(0)
    prompts = [
        Prompt(Problem(str(n), "", ()), rng.integers(0, model.vocab_size, rng.integers(8, 40)).astype(np.int32))
        for n in range(PROMPTS)
    ]

    def sampled(prompts: list[Prompt], **changes: int) -> Found:
        config = get_config().rollout
        config.update({"slots": 64, "page_size": 16, "max_response_tokens": TOKENS.value} | changes)
        engine = RolloutEngine(model, mesh, config)
        found = engine.generate(params, prompts, SAMPLES, Sampling(max_response_tokens=TOKENS.value), 0)
        return {(r.problem_id, r.sample): r for r in found}

    first = sampled(prompts)
    cases = {
        "repeated": lambda: sampled(prompts),
        "16 slots": lambda: sampled(prompts, slots=16),
        "halves": lambda: sampled(prompts[::2]) | sampled(prompts[1::2]),
    }
    for name, again in cases.items():
        line = {"dtype": DTYPE.value, "case": name, "responses": len(first)}
        print(json.dumps(line | differences(first, again())), flush=True)


def differences(first: Found, other: Found) -> dict[str, float]:
    """How the same responses differ between two runs."""
    places, compared, apart = [], 0, 0.0
    for address, one in first.items():
        differs = np.flatnonzero(one.tokens != other[address].tokens)
        end = int(differs[0]) if len(differs) else len(one.tokens)
        places += [end] if len(differs) else []
        compared += min(end + 1, len(one.tokens))
        apart = max(apart, float(np.abs(one.logprobs[:end] - other[address].logprobs[:end]).max(initial=0)))
    return {
        "differ": round(len(places) / len(first), 4),
        "per_token": round(len(places) / compared, 6),
        "median_place": float(np.median(places)) if places else None,
        "logprob_before": round(apart, 6),
    }


if __name__ == "__main__":
    cli.run(main)
