"""What a run holds on the host beside its TrainState, as one value that is saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from polaris_jax.data.curriculum import Curriculum
from polaris_jax.rollout.codec import COMPACT, rollouts_from_arrays, rollouts_to_arrays
from polaris_jax.training.next_batch import SampledBatch
from polaris_jax.types import Group, Problem, Solution

SOLUTION = "solution_"


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

    The arrays hold rollouts as in `rollout/codec.py`: those of the next batch, and the solutions, whose arrays have
    names with `SOLUTION` before them.
    """
    solutions, batch = host.curriculum.solutions, host.next_batch
    arrays = rollouts_to_arrays([r for group in (batch.groups if batch else ()) for r in group.rollouts])
    compact = rollouts_to_arrays([solution.rollout for solution in solutions.values()], COMPACT)
    arrays |= {f"{SOLUTION}{name}": array for name, array in compact.items()}
    saved = asdict(replace(host, curriculum=replace(host.curriculum, solutions={}), next_batch=None))
    saved["solutions"] = [[name, solution.reward] for name, solution in solutions.items()]
    if batch:
        groups = [[asdict(group.problem), group.rewards.tolist(), group.correct.tolist()] for group in batch.groups]
        saved["next_batch"] = batch._asdict() | {"groups": groups}
    return saved, arrays


def from_saved(saved: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> HostState:
    """The host state of `to_saved`."""
    saved = dict(saved)
    compact = {name.removeprefix(SOLUTION): array for name, array in arrays.items() if name.startswith(SOLUTION)}
    kept = zip(saved.pop("solutions"), rollouts_from_arrays(compact, COMPACT), strict=True)
    solutions = {name: Solution(rollout, reward) for (name, reward), rollout in kept}
    curriculum = saved.pop("curriculum")
    places = {source: tuple(place) for source, place in curriculum["places"].items()}
    curriculum |= {"dropped": tuple(curriculum["dropped"]), "solutions": solutions, "places": places}
    batch_arrays = {name: array for name, array in arrays.items() if not name.startswith(SOLUTION)}
    rest = iter(rollouts_from_arrays(batch_arrays))
    if batch := saved.pop("next_batch"):
        groups = []
        for problem, rewards, correct in batch["groups"]:
            problem = Problem(**problem | {"answers": tuple(problem["answers"])})
            rollouts = tuple(islice(rest, len(rewards)))
            groups.append(Group(problem, rollouts, np.asarray(rewards, np.float32), np.asarray(correct, bool)))
        batch = SampledBatch(**batch | {"groups": groups})
    return HostState(**saved, curriculum=Curriculum(**curriculum), next_batch=batch)
