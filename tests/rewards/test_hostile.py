"""Nothing that a model writes hangs, crashes, exhausts or cheats the verifier."""

import time
from pathlib import Path

import pytest

from polaris_jax.rewards import Reason, VerifierPool
from tests.rewards.hostile import boxed, hostile_cases

TIMEOUT_S = 2.0


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(2, timeout_s=TIMEOUT_S, memory_bytes=512 << 20) as pool:
        for future in [pool.submit(boxed("1/2"), "0.5") for _ in range(8)]:
            assert future.result().correct
        yield pool


def test_hostile_cases_are_wrong_in_time(pool):
    """Those after a slow one are answered too, and ordinary cases among them keep their verdicts."""
    cases = hostile_cases()
    assert len(cases) > 300
    hostile = [(case, pool.submit(case.response, case.answer)) for case in cases]
    ordinary = [pool.submit(boxed("\\frac12"), "0.5") for _ in range(20)]
    accepted = [case for case, future in hostile if future.result().correct]
    assert not accepted
    assert all(future.result().correct for future in ordinary)
    assert not Path("/tmp/polaris_pwned").exists()


def test_each_hostile_case_keeps_its_timeout(pool):
    slowest = 0.0
    for case in hostile_cases()[::8]:
        started = time.monotonic()
        pool.submit(case.response, case.answer).result()
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < TIMEOUT_S + 30.0  # what a very busy machine takes to start another worker; else it hangs


def test_a_sum_of_huge_terms_is_wrong(pool):
    verdict = pool.submit(boxed("\\sum_{k=0}^{2000} 3^{k^{2}}"), "42").result()
    assert not verdict.correct
    assert verdict.reason in (Reason.UNEQUAL, Reason.UNPARSABLE, Reason.TIMED_OUT, Reason.OVER_MEMORY)
