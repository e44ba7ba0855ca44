"""Pass rates are counted right, are kept on disk problem by problem, and choose the problems that are kept."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_jax.data.difficulty import in_bands, with_accuracies
from polaris_jax.data.problems import load_problems
from polaris_jax.errors import UserError
from polaris_jax.evaluation import difficulty
from polaris_jax.evaluation.difficulty import PassRate, pass_rates
from polaris_jax.files import Journal
from polaris_jax.sampler import Sampler
from polaris_jax.types import Problem, Prompt, Rollout
from tests.conftest import EvenLengthPool

PROBLEMS = [Problem(f"{i:016x}", f"q{i}", ("1",), "s") for i in range(6)]
PROMPTS = [Prompt(problem, np.arange(3, dtype=np.int32)) for problem in PROBLEMS]


class Characters:
    """Stands in for a tokenizer: every token is one character."""

    def decode(self, tokens):
        return "x" * len(tokens)


class FewerAndFewer:
    """Stands in for the engine: of problem i the first i responses have an even length. Stops after `most` rollouts."""

    def __init__(self, most=10**6):
        self.most, self.asked = most, []

    def state(self):
        """For the watchdog's report."""
        return {}

    def generate(self, params, prompts, samples, sampling, seed):
        self.asked = [prompt.problem.id for prompt in prompts]
        for sample in reversed(range(samples)):  # the problems are finished at the very end, but for those before
            for prompt in prompts:
                self.most -= 1
                if self.most < 0:
                    raise KeyboardInterrupt
                tokens = np.zeros(2 if sample < int(prompt.problem.id, 16) else 3, np.int32)
                logprobs = np.zeros(len(tokens), np.float32)
                yield Rollout(prompt.problem.id, sample, prompt.tokens, tokens, logprobs, "length")


def measure(journal, engine):
    return pass_rates(Sampler(engine, Characters(), EvenLengthPool()), None, PROMPTS, 4, None, 0, journal)


def test_pass_rates_count_and_every_finished_problem_is_on_disk(tmp_path):
    path, settings = tmp_path / "rates.jsonl", {"model": "m"}
    with Journal(path, settings, PassRate) as journal, pytest.raises(KeyboardInterrupt):
        measure(journal, FewerAndFewer(most=6 * 3 + 2))
    assert len(path.read_text().splitlines()) == 1 + 2
    engine = FewerAndFewer()
    with Journal(path, settings, PassRate) as journal:
        rates = measure(journal, engine)
    assert engine.asked == [problem.id for problem in PROBLEMS[2:]]
    assert [rates[problem.id].right for problem in PROBLEMS] == [0, 1, 2, 3, 4, 4]
    assert rates[PROBLEMS[1].id] == PassRate(PROBLEMS[1].id, [*PROBLEMS[1].answers], 1, 4, tokens=2 + 3 * 3)
    engine = FewerAndFewer(most=0)
    with Journal(path, settings, PassRate) as journal:
        assert measure(journal, engine) == rates
    with pytest.raises(UserError, match="model 'm', this one has 'n'"):
        Journal(path, {"model": "n"}, PassRate)


def test_bands():
    accuracies = [0, 1 / 8, 4 / 8, 7 / 8, 1, 1]
    problems = with_accuracies(PROBLEMS, {p.id: a for p, a in zip(PROBLEMS, accuracies, strict=True)})

    def kept(*bands):
        return [problem.accuracy for problem in in_bands(problems, bands)]

    assert kept((0.0, 0.999)) == accuracies[:4]
    assert kept((0.0, 0.5)) == accuracies[:3]
    assert kept((0.0, 0.0), (0.5, 0.9)) == [0, 0.5, 7 / 8]
    with pytest.raises(ValueError, match="has no accuracy; 6 such"):
        in_bands(PROBLEMS, ((0.0, 1.0),))


@given(st.lists(st.integers(0, 8)), st.integers(0, 8), st.integers(0, 8))
def test_what_a_band_keeps_and_drops_is_all(right, low, high):
    problems = [Problem(str(i), "", ("1",), accuracy=k / 8) for i, k in enumerate(right)]
    kept = in_bands(problems, ((low / 8, high / 8),))
    assert [p.id for p in kept] == [str(i) for i, k in enumerate(right) if low <= k <= high]


@pytest.mark.slow
def test_the_job_writes_datasets_with_cards(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(difficulty, "verifier_pool", lambda config: EvenLengthPool())
    config = tiny_config(**{"difficulty.problems": 12, "difficulty.samples": 4})
    found = difficulty.run(config, tmp_path / "out")
    assert len(found.measured) == 12
    assert 0 < len(found.kept) <= 12
    assert {type(problem.accuracy * 4) for problem in found.measured} == {float}
    assert load_problems(tmp_path / "out" / "measured") == found.measured
    assert load_problems(tmp_path / "out" / "kept") == found.kept
    assert "Kept: accuracy from 0 to 0.999" in (tmp_path / "out" / "kept" / "README.md").read_text()
    assert (tmp_path / "out" / "difficulty.png").stat().st_size > 1000
    lines = (tmp_path / "out" / "pass_rates.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["samples"] == 4
    assert len(lines) == 1 + 12
    monkeypatch.setattr(difficulty, "RolloutEngine", lambda *args: FewerAndFewer(most=0))
    assert difficulty.run(config, tmp_path / "out") == found
    with pytest.raises(UserError, match=r"config.difficulty.keep: none of 12 problems has an accuracy of 2 to 3"):
        difficulty.run(tiny_config(**{"difficulty.problems": 12, "difficulty.samples": 4,
                                      "difficulty.keep": ((2.0, 3.0),)}), tmp_path / "out")  # fmt: skip
