"""Sampling responses: `RolloutEngine` is the one sampler of training, difficulty estimation, evaluation and SFT."""

from polaris_jax.rollout.engine import RolloutEngine
from polaris_jax.rollout.records import Progress, ScoredRollout
from polaris_jax.rollout.sampling import Sampling

__all__ = ["Progress", "RolloutEngine", "Sampling", "ScoredRollout"]
