"""Rewards of reinforcement learning with verifiable answers: is the boxed answer equal to the ground truth?"""

from polaris_jax.rewards.pool import VerifierPool, verify
from polaris_jax.rewards.verdict import Reason, Verdict

__all__ = ["Reason", "Verdict", "VerifierPool", "verify"]
