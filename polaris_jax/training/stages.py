"""What happens between two stages: the easy problems are dropped, and the temperature of the next stage is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from polaris_jax.data.curriculum import drop_easy, new_epoch, new_stage
from polaris_jax.evaluation.evaluate import evaluate
from polaris_jax.evaluation.probe import measures
from polaris_jax.hf import stop_ids
from polaris_jax.rl.temperature import search_temperature
from polaris_jax.sampler import Sampler, make_sampling
from polaris_jax.training.host import HostState
from polaris_jax.types import Prompt

Measure = Callable[[float], tuple[float, float]]  # a temperature's accuracy and diversity


def enter_stage(
    host: HostState,
    index: int,
    stages: Sequence[ConfigDict],
    step: int,
    prompts: Sequence[Sequence[Prompt]],
    measure: Measure,
) -> HostState:
    """The host state with which stage `index` begins behind `step`.

    prompts: those of each stage. At the end of a stage problems with an accuracy over its `data.drop_above` are
    dropped; other data begin with an epoch of their own. The temperature is the
    config's, or where that says "search" the one that restores the diversity measured before the first stage, looked
    for from the temperature of the stage before. measure: for the model that this stage begins with. The same for the
    same arguments, so that a run that is stopped in here gets the same again.
    """
    stage, curriculum, diversity = stages[index], host.curriculum, host.diversity
    if index > 0:
        ended, coming = prompts[index - 1], prompts[index]
        data, least = stages[index - 1].data, stage.rollout.prompts
        curriculum = new_stage(drop_easy(curriculum, ended, data, coming=coming, least=least))
        if coming is not ended:
            curriculum = new_epoch(curriculum)
    temperature = float(stage.rollout.temperature)
    if stage.search.on:
        highest = max(stage.search.highest, host.temperature)
        temperature = search_temperature(measure, diversity, host.temperature, highest=highest)
    elif index == 0 and any(later.search.on for later in stages):
        _, diversity = measure(temperature)
    return replace(
        host, curriculum=curriculum, stage=index, stage_start=step, temperature=temperature, diversity=diversity
    )


def make_measure(sampler: Sampler, params: Any, prompts: Sequence[Prompt], config: ConfigDict) -> Measure:
    """Builds `measure(temperature) -> (accuracy, diversity)` on `config.search.problems` of the problems.

    They are drawn by the seed, the same in every stage, and get `config.search.samples` responses each.
    """
    order = np.random.default_rng([config.seed]).permutation(len(prompts))
    probed = [prompts[i] for i in order[: config.search.problems]]
    sampling, samples = make_sampling(config.rollout, stop_ids(sampler.tokenizer)), config.search.samples

    def measure(temperature: float) -> tuple[float, float]:
        at = replace(sampling, temperature=temperature)
        found = measures(evaluate(sampler, params, probed, samples, at, config.seed))
        return found["mean"], found["diversity"]

    return measure
