"""The engine gives, token for token, what one sequence at a time without a cache gives."""

from __future__ import annotations

import numpy as np
import pytest

from polaris_jax.rollout import RolloutEngine, Sampling
from tests.rollout.conftest import obvious, random_prompts, rollout_config

SAMPLED = Sampling(max_response_tokens=40, stop_ids=(3, 7))
PROMPTS = random_prompts(4)
LIMITS = np.random.default_rng(1).integers(1, 41, (4, 3))


@pytest.fixture(scope="session")
def expected(model, params):
    """What the obvious sampler gives for PROMPTS x 3, per sampling."""
    known = {}

    def responses(sampling):
        if sampling not in known:
            known[sampling] = {
                (prompt.id, k): obvious(model, params, prompt, k, sampling, 5, LIMITS[i, k])
                for i, prompt in enumerate(PROMPTS)
                for k in range(3)
            }
        return known[sampling]

    return responses


def check(rollouts, expected):
    assert {(r.problem_id, r.sample) for r in rollouts} == set(expected)
    assert len(rollouts) == len(expected)
    for r in rollouts:
        tokens, logprobs, reason = expected[r.problem_id, r.sample]
        assert r.tokens.tolist() == tokens
        assert r.finish_reason == reason
        np.testing.assert_allclose(r.logprobs, logprobs, atol=1e-4)


@pytest.mark.parametrize("slots", [1, 3, 16])
@pytest.mark.parametrize("page_size", [8, 64])
@pytest.mark.parametrize("share", [True, False])
def test_equals_the_obvious_sampler(model, mesh, params, expected, slots, page_size, share):
    engine = RolloutEngine(model, mesh, rollout_config(slots=slots, page_size=page_size), share_prefix=share)
    rollouts = list(engine.generate(params, PROMPTS, 3, SAMPLED, 5, limits=LIMITS))
    check(rollouts, expected(SAMPLED))
