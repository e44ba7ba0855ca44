"""What a run holds on the host beside its TrainState, as one value that is saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np

from polaris_jax.data.curriculum import Curriculum
from polaris_jax.types import Rollout


@dataclass(frozen=True)
class HostState:
    """Where a run is.

    curriculum: the place in the data and what is known of the problems. stage: index of the present stage.
    stage_start: the step that it began after. temperature: of its rollouts. diversity: of the responses at the start
    of training, which a search for a temperature restores; None where no stage searches. device_seconds: spent so far,
    summed over devices.
    """

    curriculum: Curriculum = field(default_factory=Curriculum)
    stage: int = 0
    stage_start: int = 0
    temperature: float = 1.0
    diversity: float | None = None
    device_seconds: float = 0.0


def to_saved(host: HostState) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The host state as json-able values and arrays; `from_saved` gives it back to the bit.

    The arrays hold the solutions one behind the other: tokens int32, prompt and response of each; logprobs float32.
    They are left out where there are no solutions.
    """
    solutions = host.curriculum.solutions
    saved = asdict(replace(host, curriculum=replace(host.curriculum, solutions={})))
    saved["solutions"] = [
        [name, r.problem_id, r.sample, r.finish_reason, len(r.prompt_tokens), len(r.tokens)]
        for name, r in solutions.items()
    ]
    if not solutions:
        return saved, {}
    tokens = np.concatenate([part for r in solutions.values() for part in (r.prompt_tokens, r.tokens)])
    logprobs = np.concatenate([r.logprobs for r in solutions.values()])
    return saved, {"tokens": tokens.astype(np.int32), "logprobs": logprobs.astype(np.float32)}


def from_saved(saved: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> HostState:
    """The host state of `to_saved`."""
    saved = dict(saved)
    rows, curriculum = saved.pop("solutions"), saved.pop("curriculum")
    tokens_end = list(accumulate((row[4] + row[5] for row in rows), initial=0))
    logprobs_end = list(accumulate((row[5] for row in rows), initial=0))
    solutions = {}
    for i, (name, problem_id, sample, finish_reason, prompt, _) in enumerate(rows):
        tokens = np.asarray(arrays["tokens"][tokens_end[i] : tokens_end[i + 1]])
        logprobs = np.asarray(arrays["logprobs"][logprobs_end[i] : logprobs_end[i + 1]])
        solutions[name] = Rollout(problem_id, sample, tokens[:prompt], tokens[prompt:], logprobs, finish_reason)
    curriculum |= {"dropped": tuple(curriculum["dropped"]), "solutions": solutions}
    return HostState(**saved, curriculum=Curriculum(**curriculum))
