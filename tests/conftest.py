"""What all tests share: compiled programs are kept for the session, and a tiny config."""

from concurrent.futures import Future
from pathlib import Path

import jax
import pytest

from polaris_jax import config as configs
from polaris_jax.rewards import Reason, Verdict

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs that several tests compile are compiled once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


SMALLER = {
    "rollout.prompts": 4,
    "rollout.samples": 4,
    "rollout.max_response_tokens": 24,
    "rollout.slots": 16,
    "rollout.tokens_per_call": 8,
    "training.steps": 4,
    "training.checkpoint_every": 2,
    "optimizer.learning_rate": 1e-2,
    "updates.rows": 8,
    "sft.steps": 4,
    "sft.checkpoint_every": 2,
    "sft.batch_size": 8,
    "evaluation.max_problems": 4,
    "evaluation.samples": 2,
    "evaluation.max_response_tokens": 24,
}


def smaller_config(**overrides):
    """The tiny config, made smaller still: 4 prompts x 4 samples of at most 24 tokens."""
    return configs.load(CONFIGS / "tiny.py", SMALLER | overrides)


@pytest.fixture
def tiny_config(monkeypatch):
    """`smaller_config`, with few problems."""
    monkeypatch.setattr("polaris_jax.training.start.ARITHMETIC_PROBLEMS", 64)
    return smaller_config


class EvenLengthPool:
    """Stands in for the verifier where a random model must earn something: a response of even length is right."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, response, answer):
        future = Future()
        correct = len(response) % 2 == 0
        future.set_result(Verdict(correct, Reason.EQUAL if correct else Reason.UNEQUAL))
        return future


@pytest.fixture
def even_length_pool(monkeypatch):
    """Makes the training loop reward responses of even length."""
    monkeypatch.setattr("polaris_jax.training.loop.verifier_pool", lambda config: EvenLengthPool())
