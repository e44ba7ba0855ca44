"""One step of GRPO: samples groups of rollouts, verifies them, and makes one update.

problems -> prompts -> rollouts -> rewards -> groups -> exploration -> advantages -> packed batches -> update
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from polaris_jax.data.curriculum import Curriculum, draw, remaining, visited
from polaris_jax.evaluation.evaluate import response_text
from polaris_jax.ops.attention import alone_in_rows
from polaris_jax.rewards import Verdict, VerifierPool
from polaris_jax.rl.advantages import ADVANTAGES, soft_overlong_punishment
from polaris_jax.rl.exploration import explore, remember
from polaris_jax.rl.packing import from_rollouts, pack
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.sharding import multihost
from polaris_jax.sharding.multihost import is_writer
from polaris_jax.sharding.rules import param_shardings
from polaris_jax.training import next_batch, not_finite, rollout_store
from polaris_jax.training.metrics import group_metrics
from polaris_jax.training.state import TrainState
from polaris_jax.types import Group, Problem, Prompt, Rollout


def train_step(
    state: TrainState,
    curriculum: Curriculum,
    config: ConfigDict,
    problems: Sequence[Problem],
    prompts: dict[str, Prompt],
    engine: RolloutEngine,
    update: Callable,
    pool: VerifierPool,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    phase: Callable[[str], None] = lambda text: None,
    workdir: Path | None = None,
    ahead: next_batch.Sampled | None = None,
    more: bool = False,
) -> tuple[TrainState, Curriculum, dict[str, float], list[Group], next_batch.Sampled | None]:
    """One step of GRPO. Returns the new state and curriculum, the step's metrics and its groups, and the next `ahead`.

    workdir: where the step's rollouts are kept for its repetition (`kept.py`), and its batch where the update was
    skipped (`not_finite.py`). ahead: the step's batch, where the step before has sampled it; `more`: whether a step of
    the same stage follows, whose batch this one samples where sampling has devices of its own (`overlap.py`).
    """
    started = time.perf_counter()
    step, known = int(state.step), remaining(curriculum, problems)

    def sample(params: Any, visits: Sequence[Problem], step: int) -> next_batch.Sampled:
        seed, samples = step_seed(config.seed, step), config.rollout.samples
        keep_at = workdir and workdir / "rollouts" / f"{step}.{jax.process_index()}"
        return sample_groups(engine, params, visits, prompts, samples, sampling, seed, pool, tokenizer, phase, keep_at)

    visits, curriculum = draw(curriculum, known, config.rollout.prompts, config.seed)
    batch = ahead or sample(state.params, visits, step)
    learn_it = partial(learn, state, curriculum, batch, config, update, sampling, phase, workdir)
    if more and config.rollout.devices:
        later, _ = draw(curriculum, known, config.rollout.prompts, config.seed)
        params = jax.device_put(state.params, param_shardings(engine.model, engine.mesh))  # the update donates its own
        learnt, ahead = next_batch.both(learn_it, partial(sample, params, later, step + 1), engine.stop)
    else:
        learnt, ahead = learn_it(), None
    state, curriculum, metrics = learnt
    seconds = time.perf_counter() - started
    metrics |= {"curriculum/problems": len(problems) - len(curriculum.dropped), "seconds/step": seconds}
    metrics["tokens_per_s"] = sum(len(r.tokens) for g in batch.groups for r in g.rollouts) / seconds
    return state, curriculum, metrics, batch.groups, ahead


def learn(
    state: TrainState,
    curriculum: Curriculum,
    batch: next_batch.Sampled,
    config: ConfigDict,
    update: Callable,
    sampling: Sampling,
    phase: Callable[[str], None] = lambda text: None,
    workdir: Path | None = None,
) -> tuple[TrainState, Curriculum, dict[str, float]]:
    """The second half of a step: the new state and curriculum, and the metrics of the batch and of its update."""
    started = time.perf_counter()
    step, (groups, texts, metrics) = int(state.step), batch
    explored = explore(groups, curriculum.solutions, config, step)
    rewards_NG = np.stack([group.rewards for group in explored.groups])
    if buffer := config.algorithm.overlong_buffer:
        lengths_NG = np.asarray([[len(rollout.tokens) for rollout in group.rollouts] for group in explored.groups])
        rewards_NG = rewards_NG + soft_overlong_punishment(lengths_NG, sampling.max_response_tokens, buffer)
    advantages_NG = ADVANTAGES[config.algorithm.advantage](rewards_NG)
    sequences = from_rollouts(explored.groups, advantages_NG, explored.off_policy)
    mesh = jax.tree.leaves(state.params)[0].sharding.mesh
    batches, packing = pack(sequences, config.updates, alone=alone_in_rows(mesh, config.model.dtype))
    least = config.algorithm.min_mixed
    too_few = least > 0 and explored.mixed / len(groups) <= least
    if too_few:
        state = state._replace(step=state.step + 1)
        update_metrics = {"skipped": 0.0, "skipped_in_a_row": float(state.opt_state.skipped_in_a_row)}
    else:
        phase("update")
        state, update_metrics = update(state, batches, sampling.temperature)
        if update_metrics["skipped"] and workdir and is_writer():
            not_finite.keep(workdir, step, batches, sampling.temperature, config)
    finished = time.perf_counter()
    curriculum = visited(curriculum, groups)
    if config.algorithm.rescue:
        solutions = remember(curriculum.solutions, groups, config.algorithm.rescue_buffer)
        curriculum = replace(curriculum, solutions=solutions)

    metrics = group_metrics(groups, texts) | metrics
    metrics |= {"groups/rescued": explored.rescued, "groups/substituted": explored.substituted}
    metrics |= {"curriculum/dropped": len(curriculum.dropped), "curriculum/solutions": len(curriculum.solutions)}
    metrics |= {f"update/{name}": value for name, value in (packing | update_metrics).items()}
    metrics |= {
        "update/too_few_mixed": float(too_few),
        "seconds/update": finished - started,
    }
    return state, curriculum, metrics


def sample_groups(
    engine: RolloutEngine,
    params: Any,
    problems: Sequence[Problem],
    prompts: dict[str, Prompt],
    samples: int,
    sampling: Sampling,
    seed: int,
    pool: VerifierPool,
    tokenizer: PreTrainedTokenizerBase,
    phase: Callable[[str], None] = lambda text: None,
    keep_at: Path | None = None,
) -> next_batch.Sampled:
    """The first half of a step: samples `samples` responses a problem and verifies each as soon as it is finished.

    Of several processes each samples and verifies its share; all return the groups of all.

    Returns the groups in the problems' order, samples in order, the responses' texts likewise, and metrics: the
    engine's, the share of each verdict's reason, and the seconds that all took and that verdicts were waited for when
    all was sampled. keep_at: the file of `rollout_store.generate`.
    """
    started = time.perf_counter()
    by_id = {problem.id: problem for problem in multihost.share(problems)}  # whose responses this process judges
    finished: dict[tuple[str, int], tuple[Rollout, str]] = {}
    verdicts: dict[tuple[str, int], Future[Verdict]] = {}
    asked = [prompts[problem.id] for problem in problems]
    for rollout in rollout_store.generate(engine, params, asked, samples, sampling, seed, keep_at):
        text = response_text(rollout, tokenizer)
        finished[rollout.problem_id, rollout.sample] = rollout, text
        if problem := by_id.get(rollout.problem_id):
            verdicts[rollout.problem_id, rollout.sample] = pool.submit(text, problem.answers)
        phase(f"{len(finished)} of {len(problems) * samples} rollouts")
    sampled = time.perf_counter()
    mine = [(*address, verdict.result().correct, verdict.result().reason) for address, verdict in verdicts.items()]
    judged = {(name, sample): verdict for each in multihost.gather(mine) for name, sample, *verdict in each}
    groups, texts = [], []
    reasons: Counter[str] = Counter()
    for problem in problems:
        addresses = [(problem.id, sample) for sample in range(samples)]
        rollouts, responses = zip(*map(finished.get, addresses), strict=True)
        correct, why = zip(*map(judged.get, addresses), strict=True)
        reasons.update(why)
        rewards = np.asarray(correct, np.float32)
        groups.append(Group(problem, rollouts, rewards))
        texts.append(list(responses))
    metrics = {f"verdict/{reason}": count / reasons.total() for reason, count in reasons.items()}
    metrics |= {f"rollout/{name}": value for name, value in engine.metrics.items()}
    metrics["rollout/not_finite"] = sum(not np.isfinite(r.logprobs).all() for group in groups for r in group.rollouts)
    ended = time.perf_counter()
    metrics |= {"seconds/rollout": ended - started, "seconds/verdicts": ended - sampled}
    return next_batch.Sampled(groups, texts, metrics)


def step_seed(seed: int, step: int) -> int:
    """The sampling seed of a step, the same whenever and wherever the step is run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0] >> 1)
