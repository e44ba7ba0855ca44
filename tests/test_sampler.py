"""Sampling and judging as one: what was judged before a restart keeps its verdict."""

from concurrent.futures import Future

import numpy as np
import pytest

from polaris_jax.rewards import Reason, Verdict
from polaris_jax.rewards.kept import KeptVerdicts
from polaris_jax.rollout import Sampling
from polaris_jax.sampler import Sampler, sample
from polaris_jax.types import Problem, Prompt, Rollout

PROMPTS = [Prompt(Problem(name, "?", ("1",)), np.arange(3, dtype=np.int32)) for name in ("a", "b", "c")]
RIGHT, LATE = Verdict(True, Reason.EQUAL), Verdict(False, Reason.TIMED_OUT)


class Engine:
    """Samples a response of each prompt, another for each; killed at the one of `killed_at`."""

    def __init__(self, killed_at=None):
        self.killed_at = killed_at

    def generate(self, params, prompts, samples, sampling, seed, *, resumed=()):
        yield from resumed
        for i, prompt in enumerate(prompts[len(resumed) :], start=len(resumed)):
            if prompt.problem.id == self.killed_at:
                raise KeyboardInterrupt
            yield Rollout(prompt.problem.id, 0, prompt.tokens, np.int32([i]), np.float32([-1]), "length")


class Tokenizer:
    def decode(self, tokens):
        return f"response {tokens[0]}"


class Verifier:
    """Says the same of all responses, as one that is slow or fast just then."""

    def __init__(self, verdict):
        self.verdict, self.judged = verdict, []

    def submit(self, response, answers):
        self.judged.append(response)
        future = Future()
        future.set_result(self.verdict)
        return future


def verdicts(engine, verifier, store, prompts=PROMPTS):
    sampler = Sampler(engine, Tokenizer(), verifier)
    found = sample(sampler, {"w": np.zeros(2, np.float32)}, prompts, 1, Sampling(), 5, store=store)
    return [scored.verdict for scored in found]


def test_a_restart_keeps_the_verdicts_of_kept_rollouts(tmp_path):
    store = tmp_path / "rollouts" / "3.0"
    assert verdicts(Engine(), Verifier(LATE), store) == [LATE] * 3
    after = Verifier(RIGHT)
    assert verdicts(Engine(), after, store) == [LATE] * 3
    assert after.judged == []


def test_what_was_judged_before_a_kill_keeps_its_verdict_and_the_others_are_judged(tmp_path):
    store = tmp_path / "rollouts" / "3.0"
    with pytest.raises(KeyboardInterrupt):
        verdicts(Engine(killed_at="c"), Verifier(LATE), store)
    store.unlink()  # killed outright: the rollouts are sampled anew, and are the same
    after = Verifier(RIGHT)
    assert verdicts(Engine(), after, store) == [LATE, LATE, RIGHT]
    assert after.judged == ["response 2"]


def test_without_a_store_nothing_is_kept(tmp_path):
    assert verdicts(Engine(), Verifier(LATE), None) == [LATE] * 3
    assert verdicts(Engine(), Verifier(RIGHT), None) == [RIGHT] * 3


def test_other_ground_truths_and_broken_lines_are_judged_again(tmp_path):
    path = tmp_path / "3.0.verdicts"
    with KeptVerdicts(path) as kept:
        kept.keep("\ud800", ["1"], RIGHT)
        kept.keep("b", ["1", "2"], LATE)
        kept.keep("b", ["1", "2"], RIGHT)  # the first stays
    with KeptVerdicts(path) as kept:
        assert kept.find("\ud800", ["1"]) == RIGHT
        assert kept.find("b", ["1", "2"]) == LATE
        assert kept.find("b", ["2"]) is None
    path.write_bytes(path.read_bytes()[:-5])
    with KeptVerdicts(path) as kept:
        assert kept.find("\ud800", ["1"]) == RIGHT
        assert kept.find("b", ["1", "2"]) is None
        kept.keep("b", ["1", "2"], RIGHT)
    with KeptVerdicts(path) as kept:
        assert kept.find("b", ["1", "2"]) == RIGHT
