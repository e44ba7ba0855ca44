"""Which problems a step visits: without replacement within an epoch, in an order that only the seed decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from ml_collections import ConfigDict

from polaris_jax.types import Group, Problem, Prompt, Solution

T = TypeVar("T")


@dataclass(frozen=True)
class Curriculum:
    """The place in the data and what is known of each problem, as one value that a checkpoint can hold.

    epoch, position: how many problems of which epoch have been drawn.
    places: source -> its own epoch and position, where several are mixed (`data/mixture.py`).
    accuracy: problem id -> share of correct rollouts at its last visit.
    rollouts, right: problem id -> how many this stage has sampled so far, and how many of them were right.
    dropped: ids of problems that are not visited any more.
    solutions: problem id -> a right response of the newest visit that had one, the least recently written first; kept
        for rollout rescue (`rl/exploration.py`).
    """

    epoch: int = 0
    position: int = 0
    accuracy: dict[str, float] = field(default_factory=dict)
    rollouts: dict[str, int] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    solutions: Mapping[str, Solution] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


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
    accuracy, rollouts, right = dict(curriculum.accuracy), Counter(curriculum.rollouts), Counter(curriculum.right)
    for group in groups:
        name = group.problem.id
        accuracy[name] = group.accuracy
        rollouts[name] += len(group.correct)
        right[name] += int(group.correct.sum())
    return replace(curriculum, accuracy=accuracy, rollouts=dict(rollouts), right=dict(right))


def new_stage(curriculum: Curriculum) -> Curriculum:
    """The curriculum of a stage that has visited nothing yet."""
    return replace(curriculum, rollouts={}, right={})


def accuracy_of(curriculum: Curriculum, problem: Problem, by: str) -> float | None:
    """What is known of a problem: by "mean" over this stage's visits, or by "last", that of its last visit.

    Where this stage has not visited it, the last visit counts, else `Problem.accuracy`.
    """
    if by == "mean" and problem.id in curriculum.rollouts:
        return curriculum.right[problem.id] / curriculum.rollouts[problem.id]
    return curriculum.accuracy.get(problem.id, problem.accuracy)


def remaining(curriculum: Curriculum, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts of the problems that are still visited, in their order."""
    dropped = set(curriculum.dropped)
    return [prompt for prompt in prompts if prompt.problem.id not in dropped]


def new_epoch(curriculum: Curriculum) -> Curriculum:
    """The curriculum at the beginning of its next epoch."""
    places = {source: (epoch + 1, 0) for source, (epoch, _) in curriculum.places.items()}
    return replace(curriculum, epoch=curriculum.epoch + 1, position=0, places=places)


def drop_easy(
    curriculum: Curriculum, prompts: Sequence[Prompt], data: ConfigDict, *, coming: Sequence[Prompt], least: int
) -> Curriculum:
    """Drops the problems whose accuracy is over `drop_above`, for good, and begins a new epoch where there are any.

    prompts, data: of the stage that ends, data being that section of its config; `drop_by` says which accuracy, as in
    `accuracy_of`, and what was never measured stays. coming: prompts of the stage that begins, often the same ones.
    At least `least` of those that come remain, so that a step has enough: the hardest of the easy ones stay.
    """
    remain = [prompt.problem for prompt in remaining(curriculum, prompts)]
    accuracies = {problem.id: accuracy_of(curriculum, problem, data.drop_by) for problem in remain}
    easy = [name for name, accuracy in accuracies.items() if accuracy is not None and accuracy > data.drop_above]
    needed = {prompt.problem.id for prompt in remaining(curriculum, coming)}
    hardest_last = sorted((name for name in easy if name in needed), key=lambda name: -accuracies[name])
    stay = set(hardest_last[max(len(needed) - least, 0) :])
    dropped = [name for name in easy if name not in stay]
    if not dropped:
        return curriculum
    return new_epoch(replace(curriculum, dropped=(*curriculum.dropped, *dropped)))
