"""Rewards that need all responses to a problem, such as their lengths: pure functions of numbers, run where groups are
made. Each takes a group's lengths in tokens, int [samples], which of it are right, bool [samples], and the problem, and
returns float [samples]."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from polaris_jax.types import Problem

ALPHA, DELTA = 3e-4, 0.5  # L1's, section 4
_BUDGET = re.compile(r"\bthink for (?:a )?(?:maximum of |up to )?(\d{1,7}) tokens", re.IGNORECASE)

GroupFunction = Callable[[np.ndarray, np.ndarray, Problem], np.ndarray]


def kimi_length(lengths: np.ndarray, correct: np.ndarray, problem: Problem) -> np.ndarray:
    """0.5 for the shortest of the group down to -0.5 for the longest; a wrong response earns nothing above 0.

    0 where all are as long. Kimi k1.5, arXiv 2501.12599, section 2.3.3.
    """
    shortest, longest = lengths.min(), lengths.max()
    if shortest == longest:
        return np.zeros(len(lengths))
    rewards = 0.5 - (lengths - shortest) / (longest - shortest)
    return np.where(correct, rewards, np.minimum(rewards, 0))


def l1_exact(lengths: np.ndarray, correct: np.ndarray, problem: Problem) -> np.ndarray:
    """-alpha |n - budget|, beside the verdict with weight 1. L1, arXiv 2503.04697, equation 1.

    The budget n is in the question: "Think for 1024 tokens." Raises ValueError where there is none.
    """
    return -ALPHA * np.abs(lengths - _budget(problem))


def l1_max(lengths: np.ndarray, correct: np.ndarray, problem: Problem) -> np.ndarray:
    """clip(alpha (budget - n) + delta, 0, 1) for a right response, 0 for a wrong one: in the verdict's place.

    L1, arXiv 2503.04697, equation 2; budget and errors as for `l1_exact`.
    """
    return correct * np.clip(ALPHA * (_budget(problem) - lengths) + DELTA, 0, 1)


def _budget(problem: Problem) -> int:
    if found := _BUDGET.findall(problem.question):
        return int(found[-1])
    raise ValueError('the question names no budget, such as "Think for 1024 tokens."')


GROUP_FUNCTIONS: dict[str, GroupFunction] = {"kimi_length": kimi_length, "l1_exact": l1_exact, "l1_max": l1_max}
