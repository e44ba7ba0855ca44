"""GRPO, top to bottom: each step samples groups of rollouts, verifies them, and makes one update.

problems -> prompts -> rollouts -> rewards -> groups -> advantages -> packed batches -> update
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from polaris_jax import config as configs
from polaris_jax.data.curriculum import Curriculum, draw, visited
from polaris_jax.data.prompts import make_prompts
from polaris_jax.errors import UserError
from polaris_jax.evaluation.evaluate import evaluate, response_text
from polaris_jax.evaluation.job import load_benchmarks, make_sampling, verifier_pool
from polaris_jax.hf import stop_ids
from polaris_jax.rewards import VerifierPool
from polaris_jax.rl.advantages import ADVANTAGES, soft_overlong_punishment
from polaris_jax.rl.losses import LOSSES
from polaris_jax.rl.packing import from_rollouts, pack
from polaris_jax.rl.update import check_finite, make_update
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training import checkpoint
from polaris_jax.training.metrics import History, MetricsLogger
from polaris_jax.training.start import check_rows, load_model, load_tokenizer, load_train_problems, save_model_files
from polaris_jax.training.state import TrainState, init_state
from polaris_jax.types import Group, Problem, Prompt, Rollout


def run(config: ConfigDict, workdir: str | Path) -> History:
    """Trains through all stages of `config`, or goes on where the run in `workdir` stopped.

    Returns the metrics of every step. Raises UserError, before anything is compiled, where config, data, model and
    workdir do not fit together.
    """
    configs.check(config)
    stages = configs.stages(config)
    mesh = make_mesh(config.mesh)
    tokenizer = load_tokenizer(config)
    problems = load_train_problems(config)
    prompts = make_prompts(problems, tokenizer, config.data.max_prompt_tokens)
    problems = [problem for problem in problems if problem.id in prompts]
    for _, stage in stages:
        check_fits(stage, prompts)
    c, held_out = config.evaluation, []
    if config.training.evaluate_every:
        held_out = load_benchmarks(c.benchmarks, suffix=config.data.suffix, most=c.max_problems, seed=config.seed)
    model, params = load_model(config, mesh, tokenizer)
    reference = jax.tree.map(jnp.copy, params) if any(stage.algorithm.kl for _, stage in stages) else None
    state = init_state(model, config, mesh, params)
    workdir = checkpoint.prepare_workdir(workdir)
    save_model_files(workdir, model, tokenizer)
    (workdir / "config.json").write_text(config.to_json_best_effort(indent=2), encoding="utf-8")

    curriculum, first_stage, stage_start = Curriculum(), 0, 0
    checkpoints = checkpoint.open_checkpoints(workdir, config.training.keep)
    if restored := checkpoint.restore(checkpoints, state):
        state, host = restored
        curriculum, first_stage, stage_start = Curriculum(**host["curriculum"]), host["stage"], host["stage_start"]

    total = sum(stage.training.steps for _, stage in stages)
    start = int(state.step)
    shown = ("reward", "response_length", "tokens_per_s")
    with verifier_pool(config) as pool, MetricsLogger(workdir, "GRPO", total, start, shown) as log:
        for index, (name, stage) in list(enumerate(stages))[first_stage:]:
            if index > first_stage:
                stage_start = int(state.step)
            engine = RolloutEngine(model, mesh, stage.rollout)
            update = make_update(model, stage, mesh, reference)
            sampling = make_sampling(stage.rollout, stop_ids(tokenizer))
            stage_end = stage_start + stage.training.steps
            while int(state.step) < stage_end:
                state, curriculum, metrics, groups = train_step(
                    state, curriculum, stage, problems, prompts, engine, update, pool, tokenizer, sampling, log.phase
                )
                step = int(state.step)
                if held_out and step % config.training.evaluate_every == 0:
                    log.phase("evaluation")
                    metrics |= evaluation_metrics(state, stage, held_out, engine, pool, tokenizer)
                log.write(step, {"stage": index, **metrics})
                log_samples(log, step, name, groups[: stage.training.log_samples], tokenizer)
                stuck = metrics["update/skipped_in_a_row"] >= stage.updates.max_skipped
                if step % stage.training.checkpoint_every == 0 or step == stage_end or stuck:
                    host = {"curriculum": asdict(curriculum), "stage": index, "stage_start": stage_start}
                    checkpoint.save(checkpoints, state, host)
                check_finite(metrics["update/skipped_in_a_row"], stage)
        return log.history()


def check_fits(config: ConfigDict, prompts: Mapping[str, Prompt]) -> None:
    """Raises UserError where a stage names an unknown function or its rows, prompts and responses do not fit."""
    for key, known in (("loss", LOSSES), ("advantage", ADVANTAGES)):
        if config.algorithm[key] not in known:
            raise UserError(
                f"config.algorithm.{key}: expected one of {', '.join(known)}; found {config.algorithm[key]!r}"
            )
    if config.rollout.prompts > len(prompts):
        raise UserError(
            f"config.rollout.prompts: {config.rollout.prompts} a step, but there are {len(prompts)} problems with "
            f"prompts of at most config.data.max_prompt_tokens={config.data.max_prompt_tokens}"
        )
    prompt = max(len(prompt.tokens) for prompt in prompts.values())
    check_rows(config, prompt + config.rollout.max_response_tokens)


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
) -> tuple[TrainState, Curriculum, dict[str, float], list[Group]]:
    """One step of GRPO. Returns the new state and curriculum, the step's metrics, and its groups."""
    started = time.perf_counter()
    visits, curriculum = draw(curriculum, problems, config.rollout.prompts, config.seed)
    seed = step_seed(config.seed, int(state.step))
    groups, reasons = sample_groups(
        engine, state.params, visits, prompts, config.rollout.samples, sampling, seed, pool, tokenizer, phase
    )
    sampled = time.perf_counter()

    rewards_NG = np.stack([group.rewards for group in groups])
    if buffer := config.algorithm.overlong_buffer:
        lengths_NG = np.asarray([[len(rollout.tokens) for rollout in group.rollouts] for group in groups])
        rewards_NG = rewards_NG + soft_overlong_punishment(lengths_NG, sampling.max_response_tokens, buffer)
    advantages_NG = ADVANTAGES[config.algorithm.advantage](rewards_NG)
    batches, packing = pack(from_rollouts(groups, advantages_NG), config.updates)
    phase("update")
    state, update_metrics = update(state, batches, sampling.temperature)
    finished = time.perf_counter()

    metrics = group_metrics(groups) | {f"verdict/{reason}": share for reason, share in reasons.items()}
    metrics |= {f"rollout/{name}": value for name, value in engine.metrics.items()}
    metrics |= {f"update/{name}": value for name, value in (packing | update_metrics).items()}
    metrics |= {
        "tokens_per_s": sum(len(r.tokens) for g in groups for r in g.rollouts) / (finished - started),
        "seconds/rollout": sampled - started,
        "seconds/update": finished - sampled,
        "seconds/step": finished - started,
    }
    return state, visited(curriculum, groups), metrics, groups


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
) -> tuple[list[Group], dict[str, float]]:
    """Samples `samples` responses a problem and verifies each as soon as it is finished.

    Returns the groups in the problems' order, samples in order, and the share of each verdict's reason.
    """
    by_id = {problem.id: problem for problem in problems}
    finished: dict[tuple[str, int], tuple[Rollout, Any]] = {}
    for rollout in engine.generate(params, [prompts[p.id] for p in problems], samples, sampling, seed):
        verdict = pool.submit(response_text(rollout, tokenizer), by_id[rollout.problem_id].answers)
        finished[rollout.problem_id, rollout.sample] = rollout, verdict
        phase(f"{len(finished)} of {len(problems) * samples} rollouts")
    groups = []
    reasons: Counter[str] = Counter()
    for problem in problems:
        pairs = [finished[problem.id, sample] for sample in range(samples)]
        verdicts = [future.result() for _, future in pairs]
        reasons.update(verdict.reason for verdict in verdicts)
        rewards = np.asarray([verdict.correct for verdict in verdicts], np.float32)
        groups.append(Group(problem, tuple(rollout for rollout, _ in pairs), rewards))
    return groups, {reason: count / reasons.total() for reason, count in reasons.items()}


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Reward, response length in tokens, share cut off, and how many groups carry an advantage."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = np.asarray([len(rollout.tokens) for rollout in rollouts])
    accuracies = np.asarray([group.accuracy for group in groups])
    return {
        "reward": float(np.mean([group.rewards for group in groups])),
        "response_length": float(lengths.mean()),
        "response_length/max": float(lengths.max()),
        "cut_off": float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
        "groups/all_right": float(np.mean(accuracies == 1)),
        "groups/all_wrong": float(np.mean(accuracies == 0)),
        "groups/mixed": float(np.mean((accuracies > 0) & (accuracies < 1))),
    }


def evaluation_metrics(
    state: TrainState,
    config: ConfigDict,
    problems: Sequence[Problem],
    engine: RolloutEngine,
    pool: VerifierPool,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, float]:
    """Each benchmark's mean accuracy and response length, with the settings of `config.evaluation`."""
    sampling = make_sampling(config.evaluation, stop_ids(tokenizer))
    samples, longest = config.evaluation.samples, config.data.max_prompt_tokens
    found = evaluate(
        state.params, engine, tokenizer, problems, sampling, samples, config.seed, pool, max_prompt_tokens=longest
    )
    return {
        f"evaluation/{benchmark}/{name}": scores[name]["mean"]
        for benchmark, scores in found.scores.items()
        for name in (f"avg@{scores['samples']}", "length")
    }


def step_seed(seed: int, step: int) -> int:
    """The sampling seed of a step, the same whenever and wherever the step is run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0] >> 1)


def log_samples(
    log: MetricsLogger, step: int, stage: str, groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes the first rollout of each group, in words, to samples.jsonl."""
    for group in groups:
        rollout = group.rollouts[0]
        log.sample(
            {
                "step": step,
                "stage": stage,
                "question": group.problem.question,
                "response": tokenizer.decode(rollout.tokens),
                "answers": list(group.problem.answers),
                "reward": float(group.rewards[0]),
                "finish_reason": rollout.finish_reason,
            }
        )
