"""GRPO through all stages of a run: steps (`step.py`), evaluations, metrics and checkpoints, and resuming from them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from polaris_jax import config as configs
from polaris_jax import supervision
from polaris_jax.data.prompts import make_prompts
from polaris_jax.evaluation.evaluate import evaluate
from polaris_jax.evaluation.job import load_benchmarks
from polaris_jax.hf import stop_ids
from polaris_jax.optim.optimizer import restart_schedule
from polaris_jax.rollout import RolloutEngine, store
from polaris_jax.rollout.engine import extended
from polaris_jax.runs.profile import traced_step
from polaris_jax.runs.start import load_model, load_tokenizer, save_model_files, training_prompts
from polaris_jax.runs.workdir import FREE, check_config, hold, write_config
from polaris_jax.sampler import Sampler, make_sampling, verifier_pool, with_think_rule
from polaris_jax.sharding.mesh import make_meshes
from polaris_jax.sharding.multihost import any_process
from polaris_jax.sharding.rules import param_shardings
from polaris_jax.training.checkpoint import Checkpoints, any_steps
from polaris_jax.training.host import HostState
from polaris_jax.training.metrics import History, MetricsLogger, log_samples
from polaris_jax.training.stages import enter_stage, make_measure
from polaris_jax.training.state import TrainState, init_state, planned_updates, state_shardings
from polaris_jax.training.step import Stage, train_step
from polaris_jax.training.update import check_finite, make_update
from polaris_jax.types import Prompt


def run(config: ConfigDict, workdir: str | Path, *, allow_changed: tuple[str, ...] = ()) -> History:
    """Trains through all stages of `config`, or resumes the run in `workdir`.

    allow_changed: keys that the config of the run in `workdir` may have otherwise. Returns the metrics of every step.
    Raises UserError, before anything is compiled, where config, data, model and workdir do not fit together.
    """
    configs.check(config)
    with hold(workdir) as held, supervision.display("GRPO"):
        return _run(config, held, allow_changed)


def _run(config: ConfigDict, workdir: Path, allow_changed: tuple[str, ...]) -> History:
    # The config and the data, checked against each other before anything is loaded on a device.
    names, stages = zip(*configs.stages(config), strict=True)
    configs.check_followed(stages)
    if any_steps(workdir):
        check_config(config, workdir, allowed=allow_changed, free=(*FREE, "sft", "difficulty"))
    meshes, sampling_meshes = zip(*(make_meshes(stage.mesh, stage.rollout.devices) for stage in stages), strict=True)
    tokenizer = load_tokenizer(config)
    prompts = training_prompts(stages, tokenizer)
    held_out = [held_out_prompts(stage, tokenizer) for stage in stages]

    # The model, its sampler for each stage, and the state, from the newest checkpoint where there is one.
    model, params = load_model(config, meshes[0], tokenizer)
    engines = [RolloutEngine(model, mesh, stage.rollout) for mesh, stage in zip(sampling_meshes, stages, strict=True)]
    reference = jax.tree.map(jnp.copy, params) if any(stage.algorithm.kl for stage in stages) else None
    state = init_state(model, config, meshes[0], params)
    checkpoints = Checkpoints(workdir, config.training)
    state, host = checkpoints.restore(state) or (state, HostState())
    save_model_files(workdir, model, tokenizer)
    write_config(config, workdir)

    start, total = int(state.step), sum(stage.training.steps for stage in stages)
    shown = ("reward", "response_length", "tokens_per_s")
    clock = time.perf_counter()
    with (
        supervision.supervised(config, workdir) as states,
        checkpoints,
        verifier_pool(with_think_rule(config, tokenizer)) as verifier,
        MetricsLogger(workdir, "GRPO", total, start, shown) as log,
    ):
        states["verifier"] = verifier.state
        for index in range(host.stage, len(stages)):
            config, mesh, engine = stages[index], meshes[index], engines[index]
            sampler, states["engine"] = Sampler(engine, tokenizer, verifier), engine.state

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
            stage = Stage(config, prompts[index], sampler, sampling, update, workdir)
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
                    metrics |= evaluation_metrics(state, stage, held_out[index])
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


def held_out_prompts(config: ConfigDict, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The problems of `config.evaluation`, as prompts; none where the stage never evaluates."""
    if not config.training.evaluate_every:
        return []
    c = config.evaluation
    problems = load_benchmarks(c.benchmarks, suffix=config.data.suffix, most=c.max_problems, seed=config.seed)
    return make_prompts(problems, tokenizer, config.data.max_prompt_tokens)


def evaluation_metrics(state: TrainState, stage: Stage, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Each benchmark's mean accuracy and response length, with the settings of `config.evaluation`."""
    supervision.heartbeat("evaluation")
    started, config = time.perf_counter(), stage.config
    sampling = make_sampling(config.evaluation, stop_ids(stage.sampler.tokenizer))
    found = evaluate(stage.sampler, state.params, prompts, config.evaluation.samples, sampling, config.seed)
    metrics = {
        f"evaluation/{benchmark}/{name}": scores[name]["mean"]
        for benchmark, scores in found.scores.items()
        for name in (f"avg@{scores['samples']}", "length")
    }
    return metrics | {"seconds/evaluation": time.perf_counter() - started}
