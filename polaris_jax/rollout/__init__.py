"""Sampling responses: `RolloutEngine` is the one sampler of training, difficulty estimation, evaluation and SFT."""

from polaris_jax.rollout.engine import RolloutEngine
from polaris_jax.rollout.records import DetailedRollout
from polaris_jax.rollout.sampling import Sampling

__all__ = ["DetailedRollout", "RolloutEngine", "Sampling"]
