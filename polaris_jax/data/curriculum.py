"""Which problems a step visits: without replacement within an epoch, in an order that only the seed decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from polaris_jax.types import Group

T = TypeVar("T")


@dataclass(frozen=True)
class Curriculum:
    """The place in the data, as one value that a checkpoint can hold.

    epoch, position: how many problems of which epoch have been drawn.
    accuracy: problem id -> share of correct rollouts at its last visit.
    """

    epoch: int = 0
    position: int = 0
    accuracy: dict[str, float] = field(default_factory=dict)


def draw(
    curriculum: Curriculum, problems: Sequence[T], count: int, seed: int, *, shuffle: bool = True
) -> tuple[list[T], Curriculum]:
    """The next `count` distinct problems (or conversations) and the curriculum behind them.

    An epoch's last problems that do not fill a batch are left out; the next epoch has another order,
    or the same, that of `problems`, without `shuffle`.
    Raises ValueError when there are fewer than `count` problems.
    """
    if count > len(problems):
        raise ValueError(f"a step needs {count} problems, there are {len(problems)}")
    if curriculum.position + count > len(problems):
        curriculum = replace(curriculum, epoch=curriculum.epoch + 1, position=0)
    order = np.arange(len(problems))
    if shuffle:
        order = np.random.default_rng([seed, curriculum.epoch]).permutation(order)
    chosen = order[curriculum.position : curriculum.position + count]
    return [problems[i] for i in chosen], replace(curriculum, position=curriculum.position + count)


def visited(curriculum: Curriculum, groups: Iterable[Group]) -> Curriculum:
    """The curriculum with the accuracies of these visits."""
    return replace(curriculum, accuracy=curriculum.accuracy | {g.problem.id: g.accuracy for g in groups})
