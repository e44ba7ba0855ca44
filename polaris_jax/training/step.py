"""One step of GRPO, from top to bottom.

problems -> rollouts -> verdicts -> groups -> exploration -> advantages -> packed batches -> update -> curriculum
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from polaris_jax.data.curriculum import Curriculum, draw, remaining, visited
from polaris_jax.data.mixture import draw_mixed, mixed_sources
from polaris_jax.ops.attention import alone_in_rows
from polaris_jax.rewards.functions import weights
from polaris_jax.rewards.total import reward_parts, weighted_sum
from polaris_jax.rl.advantages import advantages
from polaris_jax.rl.exploration import explore, remember
from polaris_jax.rl.losses import covariance_clip, entropy_weight, has_entropy_bonus, next_entropy_coefficient
from polaris_jax.rl.packing import from_rollouts, pack
from polaris_jax.rollout import Sampling
from polaris_jax.sampler import Sampler, sample
from polaris_jax.sharding.multihost import is_writer
from polaris_jax.sharding.rows import row_groups
from polaris_jax.sharding.rules import param_shardings
from polaris_jax.supervision import heartbeat
from polaris_jax.training import group_log, not_finite
from polaris_jax.training.host import HostState
from polaris_jax.training.metrics import group_metrics, reward_metrics
from polaris_jax.training.next_batch import SampledBatch, beside
from polaris_jax.training.state import TrainState
from polaris_jax.training.update import Update
from polaris_jax.types import Group, Prompt


class Stage(NamedTuple):
    """What stays the same in all steps of a stage; made once.

    config: the stage's. prompts: of all training problems. sampling: with the stage's temperature. update: of
    `make_update`. workdir: keeps the rollouts of a step for its repetition (`rollout/store.py`), a few groups for the
    report (`group_log.py`), and the batch where the update was skipped (`not_finite.py`); None keeps nothing. logprobs:
    of the trainer, as `group_log.look` wants it; needed where there is a workdir.
    """

    config: ConfigDict
    prompts: Sequence[Prompt]
    sampler: Sampler
    sampling: Sampling
    update: Update
    workdir: Path | None
    logprobs: Callable | None = None


def train_step(
    state: TrainState, host: HostState, stage: Stage, *, last: bool
) -> tuple[TrainState, HostState, list[Group], dict[str, float]]:
    """One step: samples groups of rollouts, verifies them, and makes one update of the batch.

    last: whether the stage ends with it, so that nothing is sampled ahead. Returns the new state and host state, the
    groups as they were sampled, and the step's metrics. state is donated.
    """
    config, engine, step = stage.config, stage.sampler.engine, int(state.step)
    started = time.perf_counter()

    # The problems of this step: without replacement within an epoch, from those that no stage has dropped.
    choice = remaining(host.curriculum, stage.prompts)
    prompts, curriculum = next_prompts(host.curriculum, choice, config)

    # Sample and verify, or take what the step before sampled beside its update.
    batch = host.next_batch or sample_batch(stage, state.params, prompts, step)
    sampled = time.perf_counter()

    # Rescue and substitute: what is trained on where all rewards of a group are equal. Metrics are of what was sampled.
    explored = explore(batch.groups, curriculum.solutions, config, step)
    too_few_mixed = explored.mixed / len(batch.groups) <= config.algorithm.min_mixed > 0

    # Advantages: of each response relative to its group.
    advantages_NG = advantages(explored.groups, config.algorithm, stage.sampling.max_response_tokens)

    # Pack: prompts and responses of many lengths into rows of a few lengths. What was cut off can be left out; it had
    # its part in the advantages of the others all the same.
    mesh = state.step.sharding.mesh
    alone = alone_in_rows(mesh, config.model.dtype)
    truncated = not config.algorithm.mask_truncated
    sequences = from_rollouts(explored.groups, advantages_NG, explored.off_policy, truncated=truncated)
    masked, too_few = advantages_NG.size - len(sequences), len(sequences) < config.updates.minibatches
    stability = {}
    if config.algorithm.covariance_clip and sequences:
        sequences, share = covariance_clip(sequences, config.algorithm, step_seed(config.seed, step))
        stability["covariance_clipped"] = share
    batches, packing = pack(sequences, config.updates, groups=row_groups(mesh), alone=alone)

    # Keep a few groups for the run's report, with what the trainer says of each token before it learns from them.
    if (logged := config.training.log_samples) and stage.workdir:
        shown = batch.groups[:logged], batch.reasons[:logged]
        looked = group_log.look(stage.logprobs, state.params, *shown, config, stage.sampling.temperature, mesh)
        group_log.keep(stage.workdir, step + 1, looked)

    # The bonus for entropy: fixed, or what holds the entropy at a target.
    entropy = entropy_weight(host.entropy_coefficient, host.entropy, config.algorithm)
    if has_entropy_bonus(config.algorithm):
        stability["entropy_coefficient"] = entropy

    # Update, and beside it sample the next batch where sampling has devices of its own: with the parameters of before,
    # copied there first, since the update donates them.
    ahead = nullcontext()
    if config.rollout.devices and not last:
        params = jax.device_put(state.params, param_shardings(engine.model, engine.mesh))
        following, _ = next_prompts(curriculum, choice, config)
        ahead = beside(sample_batch, stage, params, following, step + 1, stop=engine.stop)
    with ahead as next_batch:
        if too_few_mixed or too_few:
            state, update_metrics = without_update(state)
        else:
            heartbeat("update")
            state, update_metrics = stage.update(state, batches, stage.sampling.temperature, entropy)
    if update_metrics["skipped"] and stage.workdir and is_writer():
        not_finite.keep(stage.workdir, step, batches, stage.sampling.temperature, config)
    measured = update_metrics.get("entropy", math.nan)
    if config.algorithm.entropy_target and math.isfinite(measured):
        coefficient = next_entropy_coefficient(host.entropy_coefficient, measured, config.algorithm)
        host = replace(host, entropy_coefficient=coefficient, entropy=measured)

    # What the step tells the curriculum: pass rates, and a right response of each problem for later rescues.
    curriculum = visited(curriculum, batch.groups)
    if config.algorithm.rescue:
        solutions = remember(curriculum.solutions, batch.groups, config.algorithm.rescue_gib * 2**30)
        curriculum = replace(curriculum, solutions=solutions)
    host = replace(host, curriculum=curriculum, next_batch=next_batch and next_batch.result())

    # Metrics.
    ended, tokens = time.perf_counter(), sum(len(r.tokens) for group in batch.groups for r in group.rollouts)
    metrics = group_metrics(batch.groups, batch.texts, stage.sampling.max_response_tokens) | batch.metrics
    metrics |= {f"update/{name}": value for name, value in (packing | update_metrics | stability).items()}
    metrics |= {"groups/rescued": explored.rescued, "groups/substituted": explored.substituted}
    metrics |= {"curriculum/dropped": len(curriculum.dropped), "curriculum/solutions": len(curriculum.solutions)}
    metrics |= {"curriculum/problems": len(choice), "update/too_few_mixed": float(too_few_mixed)}
    metrics |= {"update/masked_truncated": masked}
    metrics |= {"seconds/update": ended - sampled, "seconds/step": ended - started}
    metrics |= {"tokens_per_s": tokens / (ended - started)}
    return state, host, batch.groups, metrics


def sample_batch(stage: Stage, params: Any, prompts: Sequence[Prompt], step: int) -> SampledBatch:
    """The batch of a step: `config.rollout.samples` judged responses to each prompt.

    Groups are in the prompts' order, samples in order. Metrics are the engine's, the share of each verdict's reason,
    what each reward function gave, the seconds that all took, and those that verdicts were waited for at the end.
    """
    started, samples, engine = time.perf_counter(), stage.config.rollout.samples, stage.sampler.engine
    store = stage.workdir and stage.workdir / "rollouts" / f"{step}.{jax.process_index()}"
    seed, total = step_seed(stage.config.seed, step), len(prompts) * samples
    found = {}
    heartbeat("rollouts", 0, total)
    for scored in sample(stage.sampler, params, prompts, samples, stage.sampling, seed, store=store):
        found[scored.problem.id, scored.rollout.sample] = scored
        heartbeat("rollouts", len(found), total)
    rows = [[found[prompt.problem.id, sample] for sample in range(samples)] for prompt in prompts]
    named, functions = weights(stage.config.reward.functions), stage.sampler.functions
    groups, parts = [], []
    for row in rows:
        problem, rollouts, verdicts = row[0].problem, tuple(s.rollout for s in row), [s.verdict for s in row]
        lengths = np.asarray([len(rollout.tokens) for rollout in rollouts])
        parts.append(reward_parts(problem, verdicts, lengths, named, functions))
        correct = np.asarray([verdict.correct for verdict in verdicts])
        groups.append(Group(problem, rollouts, weighted_sum(parts[-1], named), correct))
    reasons = Counter(scored.verdict.reason for scored in found.values())
    metrics = {f"verdict/{reason}": count / total for reason, count in reasons.items()}
    metrics |= reward_metrics(parts)
    metrics |= {f"rollout/{name}": value for name, value in engine.metrics.items()}
    metrics["rollout/not_finite"] = sum(not np.isfinite(s.rollout.logprobs).all() for s in found.values())
    seconds = time.perf_counter() - started
    metrics |= {"seconds/rollout": seconds, "seconds/verdicts": max(seconds - engine.metrics["seconds"], 0.0)}
    texts = [[scored.text for scored in row] for row in rows]
    return SampledBatch(groups, texts, [[str(scored.verdict.reason) for scored in row] for row in rows], metrics)


def next_prompts(
    curriculum: Curriculum, choice: Sequence[Prompt], config: ConfigDict
) -> tuple[list[Prompt], Curriculum]:
    """The prompts of a step, from one source or from several with weights, and the curriculum behind them."""
    if config.data.mix:
        sources = mixed_sources(config.data.mix)
        return draw_mixed(curriculum, choice, config.rollout.prompts, config.seed, sources)
    return draw(curriculum, choice, config.rollout.prompts, config.seed)


def without_update(state: TrainState) -> tuple[TrainState, dict[str, float]]:
    """The state behind a step that trains on nothing, and the metrics that say so."""
    skipped = {"skipped": 0.0, "skipped_in_a_row": float(state.opt_state.skipped_in_a_row)}
    return state._replace(step=state.step + 1), skipped


def step_seed(seed: int, step: int) -> int:
    """The sampling seed of a step, the same whenever and wherever the step is run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0] >> 1)
