"""The reward of each response of a group: the weighted sum of what `config.reward.functions` give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polaris_jax.rewards.functions import VERIFY, RewardFunction
from polaris_jax.rewards.of_groups import GROUP_FUNCTIONS
from polaris_jax.rewards.verdict import Score, Verdict
from polaris_jax.types import Problem


class Part(NamedTuple):
    """What one function gave a group. values: float64 [samples], 0 where it failed. errors: why, of each that did."""

    values: np.ndarray
    errors: tuple[str, ...]


def reward_parts(
    problem: Problem,
    verdicts: Sequence[Verdict],
    lengths: np.ndarray,
    weights: Mapping[str, float],
    functions: Sequence[RewardFunction],
) -> dict[str, Part]:
    """By the name of each of `weights` what the group was given, without the weight.

    verdicts: with the scores of `functions`, in their order. lengths: int [samples], tokens.
    """
    scores = {function.name: [verdict.scores[i] for verdict in verdicts] for i, function in enumerate(functions)}
    scores[VERIFY] = [Score(verdict.reward) for verdict in verdicts]
    for name in weights.keys() & GROUP_FUNCTIONS.keys() - scores.keys():
        scores[name] = _of_group(name, problem, verdicts, lengths)
    return {
        name: Part(
            np.asarray([score.value for score in scores[name]], np.float64),
            tuple(score.error for score in scores[name] if score.error),
        )
        for name in weights
    }


def weighted_sum(parts: Mapping[str, Part], weights: Mapping[str, float]) -> np.ndarray:
    """The weighted sum, float32 [samples]."""
    return np.sum([weights[name] * part.values for name, part in parts.items()], axis=0).astype(np.float32)


def _of_group(name: str, problem: Problem, verdicts: Sequence[Verdict], lengths: np.ndarray) -> list[Score]:
    correct = np.asarray([verdict.correct for verdict in verdicts])
    try:
        return [Score(float(value)) for value in GROUP_FUNCTIONS[name](lengths, correct, problem)]
    except ValueError as error:  # the problem is not one for it
        return [Score(0.0, str(error))] * len(verdicts)
