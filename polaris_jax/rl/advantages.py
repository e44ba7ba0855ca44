"""Advantages of the responses of one prompt, relative to each other; all in float32 numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from polaris_jax.types import Group


def group_advantages(rewards_NG: np.ndarray, *, eps: float = 1e-6) -> np.ndarray:
    """GRPO: reward minus its group's mean, over the group's unbiased standard deviation plus `eps`.

    rewards_NG: float32 [groups, samples]. Returns float32 of the same shape; a group of equal rewards gets zeros.
    Raises ValueError when a group has one sample. DeepSeekMath, arXiv 2402.03300, section 4.1.2.
    """
    centred_NG = mean_advantages(rewards_NG)
    deviation_N1 = np.sqrt((centred_NG**2).sum(axis=1, keepdims=True) / (centred_NG.shape[1] - 1))
    return centred_NG / (deviation_N1 + np.float32(eps))


def mean_advantages(rewards_NG: np.ndarray) -> np.ndarray:
    """Dr. GRPO: reward minus its group's mean, not divided by anything (arXiv 2503.20783, section 3.2).

    Shapes and errors as in `group_advantages`.
    """
    rewards_NG = np.asarray(rewards_NG, np.float32)
    if rewards_NG.ndim != 2 or rewards_NG.shape[1] < 2:
        raise ValueError(f"advantages need [groups, samples] with 2 or more samples, got shape {rewards_NG.shape}")
    equal_N1 = (rewards_NG == rewards_NG[:, :1]).all(axis=1, keepdims=True)
    centred_NG = rewards_NG - rewards_NG.mean(axis=1, keepdims=True)
    return np.where(equal_N1, np.float32(0), centred_NG)  # the mean of equal rewards is not always their value


def rloo_advantages(rewards_NG: np.ndarray) -> np.ndarray:
    """RLOO: reward minus the mean of the group's other rewards (arXiv 2402.14740, section 3.1).

    Shapes and errors as in `group_advantages`.
    """
    centred_NG = mean_advantages(rewards_NG)
    samples = centred_NG.shape[1]
    return centred_NG * np.float32(samples / (samples - 1))


ADVANTAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "group": group_advantages,
    "mean": mean_advantages,
    "rloo": rloo_advantages,
}


def advantages(groups: Sequence[Group], algorithm: ConfigDict, max_response_tokens: int) -> np.ndarray:
    """The advantages that `config.algorithm` names, float32 [groups, samples].

    Of the rewards, less the punishment of length where `overlong_buffer` asks for one.
    """
    rewards_NG = np.stack([group.rewards for group in groups])
    if algorithm.overlong_buffer:
        lengths_NG = np.asarray([[len(rollout.tokens) for rollout in group.rollouts] for group in groups])
        rewards_NG = rewards_NG + soft_overlong_punishment(lengths_NG, max_response_tokens, algorithm.overlong_buffer)
    return ADVANTAGES[algorithm.advantage](rewards_NG)


def soft_overlong_punishment(lengths: np.ndarray, max_tokens: int, buffer_tokens: int) -> np.ndarray:
    """What to add to the rewards of long responses: 0 up to `max_tokens - buffer_tokens`, then linear down to -1.

    lengths: int [...], tokens of each response. Returns float32 [...] in [-1, 0]. DAPO, arXiv 2503.14476, equation 13.
    """
    over = np.asarray(lengths, np.float32) - np.float32(max_tokens - buffer_tokens)
    return -np.clip(over / np.float32(buffer_tokens), 0, 1)
