"""GRPO through all stages of a run: steps (`step.py`), evaluations, metrics and checkpoints, and going on from them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from polaris_jax import config as configs
from polaris_jax import supervision
from polaris_jax.data.prompts import make_prompts
from polaris_jax.errors import UserError
from polaris_jax.evaluation.evaluate import evaluate
from polaris_jax.evaluation.job import load_benchmarks, make_sampling, verifier_pool
from polaris_jax.hf import stop_ids
from polaris_jax.rewards import VerifierPool
from polaris_jax.rl.update import check_finite, make_update
from polaris_jax.rollout import RolloutEngine
from polaris_jax.runs.start import check_rows, load_model, load_tokenizer, load_train_problems, save_model_files
from polaris_jax.runs.workdir import FREE, check_config, hold, write_config
from polaris_jax.sharding.multihost import any_process
from polaris_jax.sharding.rules import param_shardings
from polaris_jax.supervision import preemption
from polaris_jax.training import next_batch, rollout_store
from polaris_jax.training.checkpoint import Checkpoints, any_steps
from polaris_jax.training.host import HostState
from polaris_jax.training.metrics import History, MetricsLogger
from polaris_jax.training.stages import enter_stage, make_measure
from polaris_jax.training.state import TrainState, init_state, state_shardings
from polaris_jax.training.step import train_step
from polaris_jax.types import Group, Problem, Prompt


def run(config: ConfigDict, workdir: str | Path, *, allow_changed: tuple[str, ...] = ()) -> History:
    """Trains through all stages of `config`, or goes on where the run in `workdir` stopped.

    allow_changed: keys that the config of the run in `workdir` may have otherwise. Returns the metrics of every step.
    Raises UserError, before anything is compiled, where config, data, model and workdir do not fit together.
    """
    configs.check(config)
    with hold(workdir) as held:
        return _run(config, held, allow_changed)


def _run(config: ConfigDict, workdir: Path, allow_changed: tuple[str, ...]) -> History:
    stages = configs.stages(config)
    if any_steps(workdir):
        check_config(config, workdir, allowed=allow_changed, free=(*FREE, "sft", "difficulty"))
    meshes, samplers = zip(*(next_batch.make_meshes(stage) for _, stage in stages), strict=True)
    tokenizer = load_tokenizer(config)
    problems = load_train_problems(config)
    prompts = make_prompts(problems, tokenizer, config.data.max_prompt_tokens)
    problems = [problem for problem in problems if problem.id in prompts]
    for _, stage in stages:
        check_fits(stage, prompts)
    c, held_out = config.evaluation, []
    if config.training.evaluate_every:
        held_out = load_benchmarks(c.benchmarks, suffix=config.data.suffix, most=c.max_problems, seed=config.seed)
    model, params = load_model(config, meshes[0], tokenizer)
    engines = [RolloutEngine(model, mesh, stage.rollout) for mesh, (_, stage) in zip(samplers, stages, strict=True)]
    reference = jax.tree.map(jnp.copy, params) if any(stage.algorithm.kl for _, stage in stages) else None
    state = init_state(model, config, meshes[0], params)
    checkpoints = Checkpoints(workdir, config.training)
    state, host = checkpoints.restore(state) or (state, HostState())
    save_model_files(workdir, model, tokenizer)
    write_config(config, workdir)

    total = sum(stage.training.steps for _, stage in stages)
    start = int(state.step)
    shown = ("reward", "response_length", "tokens_per_s")
    clock = time.perf_counter()
    with (
        supervision.supervised(config, workdir) as states,
        checkpoints,
        verifier_pool(config) as pool,
        MetricsLogger(workdir, "GRPO", total, start, shown) as log,
    ):

        def phase(text: str) -> None:
            log.phase(text)
            supervision.heartbeat(text)

        states["verifier"] = pool.state
        for index, (name, stage) in list(enumerate(stages))[host.stage :]:
            mesh, engine = meshes[index], engines[index]
            state = jax.device_put(state, state_shardings(model, stage, mesh))
            if reference is not None:
                reference = jax.device_put(reference, param_shardings(model, mesh))
            states["engine"] = engine.state
            update = make_update(model, stage, mesh, reference)
            if int(state.step) == 0 or index > host.stage:
                phase(f"entering stage {name}")
                measure = make_measure(state.params, engine, tokenizer, problems, stage, pool)
                host = enter_stage(host, index, [stage for _, stage in stages], int(state.step), problems, measure)
            sampling = replace(make_sampling(stage.rollout, stop_ids(tokenizer)), temperature=host.temperature)
            stage_end = host.stage_start + stage.training.steps
            while int(state.step) < stage_end:
                try:
                    state, curriculum, metrics, groups, ahead = train_step(
                        state,
                        host.curriculum,
                        stage,
                        problems,
                        prompts,
                        engine,
                        update,
                        pool,
                        tokenizer,
                        sampling,
                        phase,
                        workdir,
                        host.ahead,
                        int(state.step) + 1 < stage_end,
                    )
                except preemption.Preempted:  # while it sampled: the state is still that before the step
                    if not stage.rollout.devices and not checkpoints.has(int(state.step)):
                        checkpoints.save(state, host, first=log.sync)
                    raise
                step = int(state.step)
                if held_out and step % config.training.evaluate_every == 0:
                    phase("evaluation")
                    metrics |= evaluation_metrics(state, stage, held_out, engine, pool, tokenizer)
                spent, clock = time.perf_counter() - clock, time.perf_counter()
                spent *= len({*mesh.devices.flat, *engine.mesh.devices.flat})
                host = replace(host, curriculum=curriculum, ahead=ahead, device_seconds=host.device_seconds + spent)
                metrics |= {"stage": index, "temperature": host.temperature}
                metrics |= {"cost/device_hours": host.device_seconds / 3600, "seconds/checkpoint": checkpoints.seconds}
                log.write(step, metrics)
                log_samples(log, step, name, groups[: stage.training.log_samples], tokenizer)
                skipped = metrics["update/skipped"] > 0  # a replay needs this state
                searched = stage.search.on and step == host.stage_start + 1  # a search is not to be done twice
                due = checkpoints.due(step, stage.training) or step == stage_end or skipped or searched
                if due or any_process(preemption.requested()):
                    phase("checkpoint")
                    rollout_store.forget(workdir)
                    checkpoints.save(state, host, metrics, first=log.sync)
                preemption.check()
                check_finite(metrics["update/skipped_in_a_row"], stage)
        checkpoints.wait()
        rollout_store.forget(workdir)
        return log.history()


def check_fits(config: ConfigDict, prompts: Mapping[str, Prompt]) -> None:
    """Raises UserError where a stage's rows, prompts and responses do not fit."""
    if config.rollout.prompts > len(prompts):
        raise UserError(
            f"config.rollout.prompts: {config.rollout.prompts} a step, but there are {len(prompts)} problems with "
            f"prompts of at most config.data.max_prompt_tokens={config.data.max_prompt_tokens}"
        )
    prompt = max(len(prompt.tokens) for prompt in prompts.values())
    check_rows(config, prompt + config.rollout.max_response_tokens, config.rollout.prompts * config.rollout.samples)


def evaluation_metrics(
    state: TrainState,
    config: ConfigDict,
    problems: Sequence[Problem],
    engine: RolloutEngine,
    pool: VerifierPool,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, float]:
    """Each benchmark's mean accuracy and response length, with the settings of `config.evaluation`."""
    started = time.perf_counter()
    sampling = make_sampling(config.evaluation, stop_ids(tokenizer))
    samples, longest = config.evaluation.samples, config.data.max_prompt_tokens
    found = evaluate(
        state.params, engine, tokenizer, problems, sampling, samples, config.seed, pool, max_prompt_tokens=longest
    )
    metrics = {
        f"evaluation/{benchmark}/{name}": scores[name]["mean"]
        for benchmark, scores in found.scores.items()
        for name in (f"avg@{scores['samples']}", "length")
    }
    return metrics | {"seconds/evaluation": time.perf_counter() - started}


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
