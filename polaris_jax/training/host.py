"""What a run holds on the host beside its TrainState, as one value that is saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, islice
from typing import Any

import numpy as np

from polaris_jax.data.curriculum import Curriculum
from polaris_jax.training.next_batch import SampledBatch
from polaris_jax.types import Group, Problem, Rollout


@dataclass(frozen=True)
class HostState:
    """Where a run is.

    curriculum: the place in the data and what is known of the problems. stage: index of the present stage.
    stage_start: the step that it began after. temperature: of its rollouts. diversity: of the responses at the start
    of training, which a search for a temperature restores; None where no stage searches. device_seconds: spent so far,
    summed over devices. next_batch: the next step's batch, where it was sampled beside the update of this one.
    """

    curriculum: Curriculum = field(default_factory=Curriculum)
    stage: int = 0
    stage_start: int = 0
    temperature: float = 1.0
    diversity: float | None = None
    device_seconds: float = 0.0
    next_batch: SampledBatch | None = None


def to_saved(host: HostState) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The host state as json-able values and arrays; `from_saved` gives it back to the bit.

    The arrays hold rollouts one behind the other, solutions first and then those of the batch ahead: tokens int32,
    prompt and response of each; logprobs float32. They are left out where there are none.
    """
    solutions, ahead = host.curriculum.solutions, host.next_batch
    rollouts = [*solutions.values(), *(r for group in (ahead.groups if ahead else ()) for r in group.rollouts)]
    saved = asdict(replace(host, curriculum=replace(host.curriculum, solutions={}), next_batch=None))
    saved["solutions"] = list(solutions)
    saved["rollouts"] = [
        [r.problem_id, r.sample, r.finish_reason, len(r.prompt_tokens), len(r.tokens)] for r in rollouts
    ]
    if ahead:
        groups = [[asdict(group.problem), group.rewards.tolist()] for group in ahead.groups]
        saved["next_batch"] = {"groups": groups, "texts": ahead.texts, "metrics": ahead.metrics}
    if not rollouts:
        return saved, {}
    tokens = np.concatenate([part for r in rollouts for part in (r.prompt_tokens, r.tokens)])
    logprobs = np.concatenate([r.logprobs for r in rollouts])
    return saved, {"tokens": tokens.astype(np.int32), "logprobs": logprobs.astype(np.float32)}


def from_saved(saved: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> HostState:
    """The host state of `to_saved`."""
    saved = dict(saved)
    names, rows, curriculum = saved.pop("solutions"), saved.pop("rollouts"), saved.pop("curriculum")
    tokens_end = list(accumulate((row[3] + row[4] for row in rows), initial=0))
    logprobs_end = list(accumulate((row[4] for row in rows), initial=0))
    rollouts = []
    for i, (problem_id, sample, finish_reason, prompt, _) in enumerate(rows):
        tokens = np.asarray(arrays["tokens"][tokens_end[i] : tokens_end[i + 1]])
        logprobs = np.asarray(arrays["logprobs"][logprobs_end[i] : logprobs_end[i + 1]])
        rollouts.append(Rollout(problem_id, sample, tokens[:prompt], tokens[prompt:], logprobs, finish_reason))
    rest = iter(rollouts)
    curriculum |= {"dropped": tuple(curriculum["dropped"]), "solutions": {name: next(rest) for name in names}}
    if ahead := saved.pop("next_batch"):
        groups = []
        for problem, rewards in ahead["groups"]:
            problem = Problem(**problem | {"answers": tuple(problem["answers"])})
            groups.append(Group(problem, tuple(islice(rest, len(rewards))), np.asarray(rewards, np.float32)))
        ahead = SampledBatch(**ahead | {"groups": groups})
    return HostState(**saved, curriculum=Curriculum(**curriculum), next_batch=ahead)
