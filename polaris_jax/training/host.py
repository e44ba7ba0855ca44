"""What a run holds on the host beside its TrainState, as one value that is saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from polaris_jax.data.curriculum import Curriculum
from polaris_jax.rollout.codec import groups_from_json, groups_to_json, rollouts_from_arrays, rollouts_to_arrays
from polaris_jax.training.next_batch import SampledBatch
from polaris_jax.types import Rollout, Solution


@dataclass(frozen=True)
class HostState:
    """Where a run is.

    curriculum: the place in the data and what is known of the problems. stage: index of the present stage.
    stage_start: the step that it began after. temperature: of its rollouts. diversity: of the responses at the start
    of training, which a search for a temperature restores; None where no stage searches. device_seconds: spent so far,
    summed over devices. next_batch: the next step's batch, where it was sampled beside the update of this one.
    entropy_coefficient, entropy: what holds the entropy at a target, and what it was in the newest update, in nats a
    token; None before the first update of a stage with a target.
    """

    curriculum: Curriculum = field(default_factory=Curriculum)
    stage: int = 0
    stage_start: int = 0
    temperature: float = 1.0
    diversity: float | None = None
    device_seconds: float = 0.0
    next_batch: SampledBatch | None = None
    entropy_coefficient: float | None = None
    entropy: float | None = None


def to_saved(host: HostState) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The host state, but for the solutions' responses (`solutions.py`), as json-able values and arrays.

    The arrays hold the rollouts of the next batch, as in `rollout/codec.py`. `from_saved` gives all back to the bit.
    """
    batch = host.next_batch
    arrays = rollouts_to_arrays([r for group in (batch.groups if batch else ()) for r in group.rollouts])
    saved = asdict(replace(host, curriculum=replace(host.curriculum, solutions={}), next_batch=None))
    saved["solution_rewards"] = {key: solution.reward for key, solution in host.curriculum.solutions.items()}
    if batch:
        saved["next_batch"] = batch._asdict() | {"groups": groups_to_json(batch.groups)}
    return saved, arrays


def from_saved(
    saved: Mapping[str, Any], arrays: Mapping[str, np.ndarray], solutions: Mapping[str, Rollout]
) -> HostState:
    """The host state of `to_saved`, with these responses as its solutions."""
    saved = dict(saved)
    curriculum, rewards = saved.pop("curriculum"), saved.pop("solution_rewards")
    places = {source: tuple(place) for source, place in curriculum["places"].items()}
    kept = {key: Solution(rollout, rewards[key]) for key, rollout in solutions.items()}
    curriculum |= {"dropped": tuple(curriculum["dropped"]), "solutions": kept, "places": places}
    if batch := saved.pop("next_batch"):
        batch = SampledBatch(**batch | {"groups": groups_from_json(batch["groups"], rollouts_from_arrays(arrays))})
    return HostState(**saved, curriculum=Curriculum(**curriculum), next_batch=batch)
