"""Difficulty as a job: rollouts of the model to be trained on each problem, pass rates, and the problems to keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from polaris_jax import config as configs
from polaris_jax import supervision
from polaris_jax.data.card import difficulty_picture, write_dataset
from polaris_jax.data.difficulty import in_bands, with_accuracies
from polaris_jax.data.mixture import mixed_sources
from polaris_jax.data.prompts import make_prompts
from polaris_jax.errors import UserError
from polaris_jax.evaluation.job import response_settings
from polaris_jax.evaluation.report import NO_THINK
from polaris_jax.files import Journal, staged
from polaris_jax.hf import stop_ids
from polaris_jax.rewards import Reason
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.runs.start import load_model, load_tokenizer, load_train_problems
from polaris_jax.runs.workdir import hold
from polaris_jax.sampler import Sampler, make_sampling, sample, verifier_pool, with_think_rule
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.multihost import gather, is_writer
from polaris_jax.supervision import heartbeat
from polaris_jax.types import Problem, Prompt


@dataclass(frozen=True)
class PassRate:
    """One measured problem. right: rollouts that gave one of its `answers`, of `samples`. tokens: of all together."""

    problem_id: str
    answers: list[str]
    right: int
    samples: int
    tokens: int


class Difficulty(NamedTuple):
    """measured: all problems, with their accuracies. kept: those within `config.difficulty.keep`."""

    measured: list[Problem]
    kept: list[Problem]


def run(config: ConfigDict, output: str | Path) -> Difficulty:
    """Measures the problems of the first stage with the model of `config.model`, or resumes that.

    Each problem gets `config.difficulty.samples` rollouts with the sampling of the first stage. Writes into `output`:
    pass_rates.jsonl, a line for each finished problem; then measured/ and kept/, datasets with cards and pass rates
    such as "3/8", and difficulty.png with the histogram of both. progress: called with problems measured so far and in
    all. Raises UserError, before anything is compiled, where config, data and model do not fit together, and where no
    problem is within the bands.
    """
    configs.check(config)
    _, stage = configs.stages(config)[0]
    tokenizer = load_tokenizer(config)
    stage = with_think_rule(stage, tokenizer)
    problems = load_train_problems(stage)[: config.difficulty.problems or None]
    prompts = make_prompts(problems, tokenizer, stage.data.max_prompt_tokens)
    if not prompts:
        raise UserError(
            f"{stage.data.mix or stage.data.train}: every prompt has over config.data.max_prompt_tokens="
            f"{stage.data.max_prompt_tokens} tokens"
        )
    path, settings = Path(output) / "pass_rates.jsonl", journal_settings(stage)
    with (
        hold(output) as held,
        supervision.display("difficulty"),
        supervision.supervised(config, output) as states,
        Journal(path, settings, PassRate) as journal,
        verifier_pool(stage) as pool,
    ):
        mesh = make_mesh(config.mesh)
        model, params = load_model(config, mesh, tokenizer)
        engine = RolloutEngine(model, mesh, stage.rollout)
        states |= {"verifier": pool.state, "engine": engine.state}
        sampling, samples = make_sampling(stage.rollout, stop_ids(tokenizer)), config.difficulty.samples
        sampler = Sampler(engine, tokenizer, pool)
        rates = pass_rates(sampler, params, prompts, samples, sampling, config.seed, journal)
        problems = [prompt.problem for prompt in prompts]
        measured = with_accuracies(problems, {name: rate.right / rate.samples for name, rate in rates.items()})
        found = Difficulty(measured, in_bands(measured, config.difficulty.keep))
        if not found.kept:
            bands = ", ".join(f"{low:g} to {high:g}" for low, high in config.difficulty.keep)
            raise UserError(f"config.difficulty.keep: none of {len(measured)} problems has an accuracy of {bands}")
        if is_writer():
            save(found, held, config)
    return found


def pass_rates(
    sampler: Sampler, params: Any, prompts: Sequence[Prompt], samples: int, sampling: Sampling, seed: int,
    journal: Journal,
) -> dict[str, PassRate]:  # fmt: skip
    """The pass rate of each problem by its id; the journal takes each as soon as it is known, and gives what it holds.

    Responses are not kept, so that memory does not grow with the problems; one whose answers have changed since is
    measured again. Of several processes each measures its
    share; all return all.
    """
    wanted = {prompt.problem.id: list(prompt.problem.answers) for prompt in prompts}
    rates = {rate.problem_id: rate for rate in journal.records if wanted.get(rate.problem_id) == rate.answers}
    resumed = set(rates)
    judged: dict[str, list[tuple[bool, int]]] = defaultdict(list)  # of problems not yet complete: right, tokens
    heartbeat("problems measured", len(rates), len(wanted))
    reasons = set()
    unmeasured = [prompt for prompt in prompts if prompt.problem.id not in resumed]
    for scored in sample(sampler, params, unmeasured, samples, sampling, seed, gather=False):
        name = scored.problem.id
        reasons.add(scored.verdict.reason)
        judged[name].append((scored.verdict.correct, len(scored.rollout.tokens)))
        if len(judged[name]) == samples:
            right, tokens = map(sum, zip(*judged.pop(name), strict=True))
            rates[name] = PassRate(name, wanted[name], right, samples, tokens)
            journal.write(rates[name])
            heartbeat("problems measured", len(rates), len(wanted))
    if reasons == {Reason.NO_THINK_END}:
        logging.warning(NO_THINK)
    for rate in chain.from_iterable(gather([asdict(rate) for name, rate in rates.items() if name not in resumed])):
        rates[rate["problem_id"]] = PassRate(**rate)
    return rates


def journal_settings(config: ConfigDict) -> dict[str, Any]:
    """All that a pass rate depends on, but for its problem."""
    names = ("temperature", "top_p", "top_k", "max_response_tokens")
    sampling = {name: config.rollout[name] for name in names}
    require_think = config.reward.require_think
    return response_settings(config) | sampling | {
        "samples": config.difficulty.samples, "require_think": require_think
    }  # fmt: skip


def save(found: Difficulty, output: Path, config: ConfigDict) -> None:
    """Writes measured/, kept/ and difficulty.png."""
    samples, source = config.difficulty.samples, ", ".join(mixed_sources(config.data.mix)) or config.data.train
    model = config.model.path or config.model.preset
    bands = " or ".join(f"{low:g} to {high:g}" for low, high in config.difficulty.keep)
    history = [f"{source}: {len(found.measured):,} problems, {samples} rollouts of {model} on each."]
    write_dataset(output / "measured", found.measured, title=f"{source}, measured", history=history, rollouts=samples)
    history.append(f"Kept: accuracy from {bands}; {len(found.measured) - len(found.kept):,} left out.")
    write_dataset(output / "kept", found.kept, title=f"{source}, filtered", history=history, rollouts=samples)
    accuracies = {
        "measured": [problem.accuracy for problem in found.measured],
        f"kept ({bands})": [problem.accuracy for problem in found.kept],
    }
    with staged(output / "difficulty.png") as path:
        difficulty_picture(accuracies, rollouts=samples).savefig(path, dpi=120)
