"""Scores of sampled answers, as pure functions on arrays: P problems with K samples each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NO_ANSWER = -1  # in place of a group's number: the response gave no answer, so it has no vote


class Estimate(NamedTuple):
    """A mean over problems and its 95% interval; `low` and `high` are NaN where there is only one problem."""

    mean: float
    low: float
    high: float


def average(correct_PK: np.ndarray) -> np.ndarray:
    """avg@K of each problem: the share of right samples. correct_PK: bool [P, K]. Returns float64 [P]."""
    return np.asarray(correct_PK, np.float64).mean(axis=1)


def pass_at_k(correct_PK: np.ndarray, k: int) -> np.ndarray:
    """Unbiased estimate of the chance that at least one of k samples is right, for each problem.

    correct_PK: bool [P, K]. Returns float64 [P]: 1 - C(K - c, k) / C(K, k) for c right samples out of K, Chen et al.
    2021, arXiv 2107.03374, section 2.1. Raises ValueError unless 1 <= k <= K.
    """
    correct_PK = np.asarray(correct_PK, bool)
    samples = correct_PK.shape[1]
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples: k must be from 1 to the number of samples")
    right_P1 = correct_PK.sum(axis=1, keepdims=True)
    # C(K - c, k) / C(K, k) as a product of k factors that does not overflow; one is 0 where fewer than k are wrong.
    drawn = np.arange(k)
    return 1.0 - np.prod(np.maximum(samples - right_P1 - drawn, 0) / (samples - drawn), axis=1)


def majority(groups_PK: np.ndarray, correct_PK: np.ndarray) -> np.ndarray:
    """maj@K of each problem: whether the answer that most samples gave is right. Returns float64 [P].

    groups_PK: int [P, K], equal numbers for equal answers, NO_ANSWER where there is none. correct_PK: bool [P, K]. The
    first sample of a group speaks for it. Of several largest groups one is drawn: the result is the share of right
    ones among them. A problem without any answer gets 0. Wang et al. 2022, arXiv 2203.11171.
    """
    groups_PK, correct_PK = np.asarray(groups_PK), np.asarray(correct_PK, bool)
    result = np.zeros(len(groups_PK))
    for problem, (groups_K, correct_K) in enumerate(zip(groups_PK, correct_PK, strict=True)):
        voting = groups_K != NO_ANSWER
        if voting.any():
            _, first, votes = np.unique(groups_K[voting], return_index=True, return_counts=True)
            result[problem] = correct_K[voting][first[votes == votes.max()]].mean()
    return result


def estimate(values_P: np.ndarray, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """The mean over problems with its 95% interval, mean +- 1.96 standard errors, cut to `bounds`.

    values_P: [P], one value a problem, so that the samples of one problem do not count as independent (Miller 2024,
    arXiv 2411.00640). The interval is about other problems of the same kind. Raises ValueError when P is 0.
    """
    values_P = np.asarray(values_P, np.float64)
    if not values_P.size:
        raise ValueError("no problems to take the mean over")
    mean = float(values_P.mean())
    if values_P.size == 1:
        return Estimate(mean, float("nan"), float("nan"))
    margin = 1.96 * float(values_P.std(ddof=1)) / np.sqrt(values_P.size)
    return Estimate(mean, max(mean - margin, bounds[0]), min(mean + margin, bounds[1]))
