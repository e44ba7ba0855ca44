"""Exploration: what a step trains on where all responses of a group are right, or all wrong.

Rollout rescue gives a group that failed a right response of an earlier visit. Informative substitution gives the place
of such a group to a copy of one in which some are right and some wrong. Rescue comes first, then substitution, then the
advantages. Both act on what is trained on only: accuracies and metrics are those of what was sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from polaris_jax.types import Group, Rollout, Solution

Marks = frozenset[tuple[int, int]]  # (group, sample) of rollouts that the current policy did not sample
STREAM = 1  # keeps these draws apart from the others that come from a seed and a step


class Explored(NamedTuple):
    """groups: as many as were sampled, to train on. off_policy: which of their rollouts were not sampled now.

    rescued, substituted: groups that were changed. mixed: groups with mixed rewards after the rescue.
    """

    groups: list[Group]
    off_policy: Marks
    rescued: int
    substituted: int
    mixed: int


def explore(groups: Sequence[Group], solutions: Mapping[str, Solution], config: ConfigDict, step: int) -> Explored:
    """Rescue and substitution as `config.algorithm` says; the same for the same seed, step and arguments.

    solutions: problem id -> a right response of an earlier visit, as `remember` keeps them. What is right and what is
    mixed the verifier says, whatever other rewards there are.
    """
    rng = np.random.default_rng([config.seed, step, STREAM])
    found, off_policy = list(groups), frozenset()
    if config.algorithm.rescue:
        found, off_policy = rescue(found, solutions, config.rollout.max_response_tokens, rng)
    rescued, mixed = len(off_policy), sum(map(is_mixed, found))
    if config.algorithm.substitute:
        found, off_policy = substitute(found, off_policy, rng)
    substituted = sum(map(is_mixed, found)) - mixed
    return Explored(found, off_policy, rescued, substituted, mixed)


def rescue(
    groups: Sequence[Group], solutions: Mapping[str, Solution], max_tokens: int, rng: np.random.Generator
) -> tuple[list[Group], Marks]:
    """In each group without a right rollout, one at random gives way to the problem's solution, where there is one.

    A solution of more than `max_tokens`, which an earlier stage allowed, is not used. Returns the groups and the marks
    of the rescued rollouts. A rescued response has the reward that it earned when it was sampled.

    The current policy did not sample a rescued response: it is off-policy. Its recorded log-probs, those of the policy
    and the temperature that sampled it, are the denominator of its ratio. With its advantage, which is positive, the
    clipped loss then gives no gradient to a token that has become more than `clip[1]` likelier since, and weighs that
    of a token that has become unlikely by its small ratio: what the policy has moved away from is trained on slowly.
    """
    rescued, marks = list(groups), set()
    for n, group in enumerate(groups):
        solution = solutions.get(group.problem.id)
        if group.accuracy > 0 or solution is None or len(solution.rollout.tokens) > max_tokens:
            continue
        sample = int(rng.integers(len(group.rollouts)))
        rollouts, rewards, correct = list(group.rollouts), group.rewards.copy(), group.correct.copy()
        rollouts[sample], rewards[sample], correct[sample] = solution.rollout, solution.reward, True
        rescued[n] = group.replace(rollouts=tuple(rollouts), rewards=rewards, correct=correct)
        marks.add((n, sample))
    return rescued, frozenset(marks)


def substitute(groups: Sequence[Group], off_policy: Marks, rng: np.random.Generator) -> tuple[list[Group], Marks]:
    """Each group of equal rewards becomes a copy of one with mixed rewards; marks go with the copy.

    Donors are drawn without replacement, and all of them again once each has given a copy. Where no group is mixed all
    stay as they are: their advantages are zero, and the update moves the parameters by the optimizer's momentum and
    weight decay alone, as it does without substitution.
    """
    mixed = [n for n, group in enumerate(groups) if is_mixed(group)]
    equal = [n for n, group in enumerate(groups) if not is_mixed(group)]
    sources = list(range(len(groups)))
    if mixed:
        donors = [n for _ in range(0, len(equal), len(mixed)) for n in rng.permutation(mixed).tolist()]
        for n, donor in zip(equal, donors, strict=False):
            sources[n] = donor
    marks = {(n, sample) for n, source in enumerate(sources) for marked, sample in off_policy if marked == source}
    return [groups[source] for source in sources], frozenset(marks)


def remember(solutions: Mapping[str, Solution], groups: Sequence[Group], most_bytes: float) -> dict[str, Solution]:
    """The solutions with a right rollout of each of these groups that has one, the newest last.

    A problem's newest replaces its older one. Where they take more than `most_bytes` together, the least recently
    written are dropped. Their log-probs are kept in float16, so that a ratio to them is off by up to 0.05% a nat.
    Samples are alike, so that a group's first right one is a random one. One whose log-probs are not finite is none.
    """
    new = {}
    for group in groups:
        for rollout, reward, correct in zip(group.rollouts, group.rewards, group.correct, strict=True):
            if correct and np.isfinite(rollout.logprobs).all():
                compact = replace(rollout, logprobs=rollout.logprobs.astype(np.float16))
                new[group.problem.id] = Solution(compact, float(reward))
                break
    kept = {name: solution for name, solution in solutions.items() if name not in new} | new
    size = sum(rollout_bytes(solution.rollout) for solution in kept.values())
    for name in list(kept):
        if size <= most_bytes:
            break
        size -= rollout_bytes(kept.pop(name).rollout)
    return kept


def rollout_bytes(rollout: Rollout) -> int:
    """Bytes of a rollout's arrays."""
    return rollout.prompt_tokens.nbytes + rollout.tokens.nbytes + rollout.logprobs.nbytes


def is_mixed(group: Group) -> bool:
    """Whether some but not all of its rollouts are right."""
    return 0 < group.accuracy < 1
