"""GRPO, top to bottom: each step samples groups of rollouts, verifies them, and makes one update.

problems -> prompts -> rollouts -> rewards -> groups -> exploration -> advantages -> packed batches -> update
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from polaris_jax import config as configs
from polaris_jax import preemption, supervision
from polaris_jax.data.curriculum import Curriculum, draw, remaining, visited
from polaris_jax.data.prompts import make_prompts
from polaris_jax.errors import UserError
from polaris_jax.evaluation.evaluate import evaluate, response_text
from polaris_jax.evaluation.job import load_benchmarks, make_sampling, verifier_pool
from polaris_jax.hf import stop_ids
from polaris_jax.ops.attention import alone_in_rows
from polaris_jax.rewards import Verdict, VerifierPool
from polaris_jax.rl.advantages import ADVANTAGES, soft_overlong_punishment
from polaris_jax.rl.exploration import explore, remember
from polaris_jax.rl.packing import from_rollouts, pack
from polaris_jax.rl.update import check_finite, make_update
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.sharding import multihost
from polaris_jax.sharding.multihost import any_process, is_writer
from polaris_jax.sharding.rules import param_shardings
from polaris_jax.training import kept, not_finite, overlap
from polaris_jax.training.checkpoint import Checkpoints, any_steps
from polaris_jax.training.host import HostState
from polaris_jax.training.metrics import History, MetricsLogger, group_metrics
from polaris_jax.training.stages import enter_stage, make_measure
from polaris_jax.training.start import check_rows, load_model, load_tokenizer, load_train_problems, save_model_files
from polaris_jax.training.state import TrainState, init_state, state_shardings
from polaris_jax.training.workdir import FREE, check_config, hold, write_config
from polaris_jax.types import Group, Problem, Prompt, Rollout


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
    meshes, samplers = zip(*(overlap.make_meshes(stage) for _, stage in stages), strict=True)
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
            supervision.beat(text)

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
                if due or any_process(preemption.asked()):
                    phase("checkpoint")
                    kept.forget(workdir)
                    checkpoints.save(state, host, metrics, first=log.sync)
                preemption.check()
                check_finite(metrics["update/skipped_in_a_row"], stage)
        checkpoints.wait()
        kept.forget(workdir)
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
    ahead: overlap.Sampled | None = None,
    more: bool = False,
) -> tuple[TrainState, Curriculum, dict[str, float], list[Group], overlap.Sampled | None]:
    """One step of GRPO. Returns the new state and curriculum, the step's metrics and its groups, and the next `ahead`.

    workdir: where the step's rollouts are kept for its repetition (`kept.py`), and its batch where the update was
    skipped (`not_finite.py`). ahead: the step's batch, where the step before has sampled it; `more`: whether a step of
    the same stage follows, whose batch this one samples where sampling has devices of its own (`overlap.py`).
    """
    started = time.perf_counter()
    step, known = int(state.step), remaining(curriculum, problems)

    def sample(params: Any, visits: Sequence[Problem], step: int) -> overlap.Sampled:
        seed, samples = step_seed(config.seed, step), config.rollout.samples
        keep_at = workdir and workdir / "rollouts" / f"{step}.{jax.process_index()}"
        return sample_groups(engine, params, visits, prompts, samples, sampling, seed, pool, tokenizer, phase, keep_at)

    visits, curriculum = draw(curriculum, known, config.rollout.prompts, config.seed)
    batch = ahead or sample(state.params, visits, step)
    learn_it = partial(learn, state, curriculum, batch, config, update, sampling, phase, workdir)
    if more and config.rollout.devices:
        later, _ = draw(curriculum, known, config.rollout.prompts, config.seed)
        params = jax.device_put(state.params, param_shardings(engine.model, engine.mesh))  # the update donates its own
        learnt, ahead = overlap.both(learn_it, partial(sample, params, later, step + 1), engine.stop)
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
    batch: overlap.Sampled,
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
) -> overlap.Sampled:
    """The first half of a step: samples `samples` responses a problem and verifies each as soon as it is finished.

    Of several processes each samples and verifies its share; all return the groups of all.

    Returns the groups in the problems' order, samples in order, the responses' texts likewise, and metrics: the
    engine's, the share of each verdict's reason, and the seconds that all took and that verdicts were waited for when
    all was sampled. keep_at: the file of `kept.generate`.
    """
    started = time.perf_counter()
    by_id = {problem.id: problem for problem in multihost.share(problems)}  # whose responses this process judges
    finished: dict[tuple[str, int], tuple[Rollout, str]] = {}
    verdicts: dict[tuple[str, int], Future[Verdict]] = {}
    asked = [prompts[problem.id] for problem in problems]
    for rollout in kept.generate(engine, params, asked, samples, sampling, seed, keep_at):
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
    return overlap.Sampled(groups, texts, metrics)


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
