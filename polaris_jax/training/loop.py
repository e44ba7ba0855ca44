"""GRPO through all stages of a run: steps (`step.py`), evaluations, metrics and checkpoints, and resuming from them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from polaris_jax import config as configs
from polaris_jax import supervision
from polaris_jax.data.prompts import make_prompts
from polaris_jax.errors import UserError
from polaris_jax.evaluation import job
from polaris_jax.hf import stop_ids
from polaris_jax.loggers import check_installed
from polaris_jax.optim.optimizer import restart_schedule
from polaris_jax.rewards.functions import response_functions
from polaris_jax.rewards.of_groups import GROUP_FUNCTIONS
from polaris_jax.rollout import RolloutEngine, store
from polaris_jax.rollout.engine import extended
from polaris_jax.runs.profile import traced_step
from polaris_jax.runs.reward_files import check_reward_files, note_reward_files
from polaris_jax.runs.start import load_to_train, load_tokenizer, save_model_files, training_prompts
from polaris_jax.runs.workdir import FREE, check_config, hold, write_config
from polaris_jax.sampler import Sampler, make_sampling, verifier_pool, with_think_rule
from polaris_jax.sharding.mesh import make_meshes
from polaris_jax.sharding.multihost import any_process
from polaris_jax.sharding.rules import param_shardings, replicated
from polaris_jax.training.checkpoint import Checkpoints, any_steps
from polaris_jax.training.host import HostState
from polaris_jax.training.metrics import History, MetricsLogger, log_samples
from polaris_jax.training.stages import enter_stage, make_measure
from polaris_jax.training.state import TrainState, init_state, planned_updates, state_bytes, state_shardings
from polaris_jax.training.step import Stage, train_step
from polaris_jax.training.update import check_finite, make_logprobs, make_update
from polaris_jax.types import Problem


def run(config: ConfigDict, workdir: str | Path, *, allow_changed: tuple[str, ...] = ()) -> History:
    """Trains through all stages of `config`, or resumes the run in `workdir`.

    allow_changed: keys that the config of the run in `workdir` may have otherwise. Returns the metrics of every step.
    Raises UserError, before anything is compiled, where config, data, model and workdir do not fit together.
    """
    configs.check(config)
    check_installed(config.training.loggers)
    with hold(workdir) as held, supervision.display("GRPO"):
        return _run(config, held, allow_changed)


def _run(config: ConfigDict, workdir: Path, allow_changed: tuple[str, ...]) -> History:
    # The config and the data, checked against each other before anything is loaded on a device.
    names, stages = zip(*configs.stages(config), strict=True)
    configs.check_followed(stages)
    functions = response_functions(config.reward.functions, list(GROUP_FUNCTIONS))
    if any_steps(workdir):
        check_reward_files(functions, workdir, allow_changed)
        check_config(config, workdir, allowed=allow_changed, free=(*FREE, "sft", "difficulty"))
    meshes, sampling_meshes = zip(*(make_meshes(stage.mesh, stage.rollout.devices) for stage in stages), strict=True)
    tokenizer = load_tokenizer(config)
    prompts = training_prompts(stages, tokenizer)
    held_out = [job.problems_by_samples(stage) if stage.training.evaluate_every else {} for stage in stages]

    # The model, its sampler for each stage, and the state, from the newest checkpoint where there is one.
    model, params = load_to_train(config, meshes[0], tokenizer)
    engines = [RolloutEngine(model, mesh, stage.rollout) for mesh, stage in zip(sampling_meshes, stages, strict=True)]
    evaluators = [
        job.make_engine(model, mesh, stage) if problems else None
        for mesh, stage, problems in zip(sampling_meshes, stages, held_out, strict=True)
    ]
    with_kl = any(stage.algorithm.kl for stage in stages) and model.lora is None  # with LoRA the base is there anyway
    reference = jax.tree.map(jnp.copy, params) if with_kl else None
    state = init_state(model, config, meshes[0], params)
    for index, stage in enumerate(stages):
        beside = 0 if stage.rollout.devices else state_bytes(state, state_shardings(model, config, meshes[index]))
        engines[index].check_fit(max(len(prompt.tokens) for prompt in prompts[index]), beside)
        if held_out[index]:
            evaluators[index].check_fit(longest_prompt(held_out[index], tokenizer), beside)
    checkpoints = Checkpoints(workdir, config.training)
    state, host = checkpoints.restore(state) or (state, HostState())
    save_model_files(workdir, model, tokenizer)
    write_config(config, workdir)
    note_reward_files(functions, workdir, int(state.step))

    start, total = int(state.step), sum(stage.training.steps for stage in stages)
    keys, shown = dict(configs.flatten(config)), ("reward", "response_length", "tokens_per_s")
    clock = time.perf_counter()
    with (
        supervision.supervised(config, workdir) as states,
        checkpoints,
        verifier_pool(with_think_rule(config, tokenizer)) as verifier,
        MetricsLogger(workdir, "GRPO", total, start, shown, config.training.loggers, keys) as log,
    ):
        states["verifier"] = verifier.state
        if functions and (fault := verifier.check(functions)):
            raise UserError(f"config.reward.functions: {fault}")
        for index in range(host.stage, len(stages)):
            config, mesh, engine = stages[index], meshes[index], engines[index]
            sampler, states["engine"] = Sampler(engine, tokenizer, verifier), engine.state
            scoring = sampler._replace(functions=tuple(functions))

            # A stage begins: parameters where its mesh wants them, easy problems dropped, its temperature chosen.
            state = jax.device_put(state, state_shardings(model, config, mesh))
            if reference is not None:
                reference = jax.device_put(reference, param_shardings(model, mesh))
            if int(state.step) == 0 or index > host.stage:
                supervision.heartbeat(f"entering stage {names[index]}")
                measure = make_measure(sampler, state.params, prompts[index], config)
                host = enter_stage(host, index, stages, int(state.step), prompts, measure)
                if config.optimizer.schedule_span == "stage":
                    state = state._replace(opt_state=restart_schedule(state.opt_state))
            sampling = replace(make_sampling(config.rollout, stop_ids(tokenizer)), temperature=host.temperature)
            spanned = stages if config.optimizer.schedule_span == "run" else [config]
            total_updates = sum(map(planned_updates, spanned))
            trained = extended(model, config.rollout).replace(remat=config.model.remat)
            update = make_update(trained, config, mesh, reference, total_updates)
            logprobs = jax.jit(make_logprobs(trained, mesh), out_shardings=replicated(mesh))
            stage = Stage(config, prompts[index], scoring, sampling, update, workdir, logprobs)
            stage_end = host.stage_start + config.training.steps

            while int(state.step) < stage_end:
                step = int(state.step) + 1
                try:
                    with traced_step(workdir, step, config.training.profile_steps):
                        state, host, groups, metrics = train_step(state, host, stage, last=step == stage_end)
                except supervision.Preempted:  # while it sampled: the state is still that before the step
                    if not config.rollout.devices and not checkpoints.has(int(state.step)):
                        checkpoints.save(state, host, first=log.sync)
                    raise

                # Held-out accuracy, costs, and all that is logged of the step.
                if held_out[index] and step % config.training.evaluate_every == 0:
                    evaluator = sampler._replace(engine=evaluators[index])
                    metrics |= evaluation_metrics(state, evaluator, held_out[index], config)
                spent, clock = time.perf_counter() - clock, time.perf_counter()
                spent *= len({*mesh.devices.flat, *engine.mesh.devices.flat})
                host = replace(host, device_seconds=host.device_seconds + spent)
                metrics |= {"stage": index, "temperature": host.temperature}
                metrics |= {"cost/device_hours": host.device_seconds / 3600, "seconds/checkpoint": checkpoints.seconds}
                log.write(step, metrics)
                log_samples(log, step, names[index], groups[: config.training.log_samples], tokenizer)

                # Save by steps and minutes, at a stage's end, and where the state is needed again: a replay needs that
                # of a skipped update, and a search for a temperature is not to be done twice.
                skipped, searched = metrics["update/skipped"] > 0, config.search.on and step == host.stage_start + 1
                due = checkpoints.due(step, config.training) or step == stage_end or skipped or searched
                if due or any_process(supervision.requested()):
                    supervision.heartbeat("checkpoint")
                    store.forget(workdir)
                    checkpoints.save(state, host, metrics, first=log.sync)
                supervision.check()
                check_finite(metrics["update/skipped_in_a_row"], config)
        checkpoints.wait()
        store.forget(workdir)
        return log.history()


def longest_prompt(by_samples: Mapping[int, Sequence[Problem]], tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest prompt of these problems."""
    prompts = chain.from_iterable(make_prompts(problems, tokenizer) for problems in by_samples.values())
    return max(len(prompt.tokens) for prompt in prompts)


def evaluation_metrics(
    state: TrainState, sampler: Sampler, by_samples: Mapping[int, Sequence[Problem]], config: ConfigDict
) -> dict[str, float]:
    """Each benchmark's mean accuracy and response length, as the evaluation job finds them for these parameters.

    sampler: with the engine of `job.make_engine`. by_samples: as in `job.problems_by_samples`.
    """
    supervision.heartbeat("evaluation")
    started = time.perf_counter()
    found = job.evaluate_all(sampler, state.params, by_samples, config)
    metrics = {
        f"evaluation/{benchmark}/{name}": scores[name]["mean"]
        for benchmark, scores in found.scores.items()
        for name in (f"avg@{scores['samples']}", "length")
    }
    return metrics | {"seconds/evaluation": time.perf_counter() - started}
