"""Which problems are worth training on: pass rates of the very model to be trained, and the bands of them to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from polaris_jax.types import Problem

Band = tuple[float, float]  # lowest and highest accuracy, both included


def with_accuracies(problems: Sequence[Problem], accuracies: Mapping[str, float]) -> list[Problem]:
    """The problems with the accuracies of their ids in place of what they had; KeyError where one has none."""
    return [replace(problem, accuracy=accuracies[problem.id]) for problem in problems]


def in_bands(problems: Sequence[Problem], bands: Sequence[Band]) -> list[Problem]:
    """The problems whose accuracy lies in one of the closed bands, in their order.

    ((0, 0.999),) drops what was always solved, ((0, x),) what was solved more often than x, and several bands keep
    several parts. Raises ValueError for a problem that was never measured.
    """
    unknown = [problem.id for problem in problems if problem.accuracy is None]
    if unknown:
        raise ValueError(f"problem {unknown[0]} has no accuracy; {len(unknown)} such problems")
    return [problem for problem in problems if any(low <= problem.accuracy <= high for low, high in bands)]
