"""Sampling responses: `RolloutEngine` is the one sampler of training, difficulty estimation, evaluation and SFT."""

from polaris_jax.rollout.engine import Progress, RolloutEngine, ScoredRollout
from polaris_jax.rollout.sampling import Sampling

__all__ = ["Progress", "RolloutEngine", "Sampling", "ScoredRollout"]
