"""Difficulty as a job: rollouts of the model to be trained on each problem, pass rates, and the problems to keep."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from polaris_jax import config as configs
from polaris_jax import supervision
from polaris_jax.data.card import difficulty_picture, write_dataset
from polaris_jax.data.difficulty import in_bands, with_accuracies
from polaris_jax.data.prompts import make_prompts
from polaris_jax.errors import UserError
from polaris_jax.evaluation.evaluate import Progress, response_text
from polaris_jax.evaluation.job import make_sampling, response_settings, verifier_pool
from polaris_jax.files import Journal, staged
from polaris_jax.hf import stop_ids
from polaris_jax.rewards import VerifierPool
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.runs.start import load_model, load_tokenizer, load_train_problems
from polaris_jax.runs.workdir import hold
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.multihost import gather, is_writer
from polaris_jax.types import Problem, Prompt


@dataclass(frozen=True)
class PassRate:
    """One measured problem. right: rollouts that solved it, of `samples`. tokens: of all of them together."""

    problem_id: str
    right: int
    samples: int
    tokens: int


class Difficulty(NamedTuple):
    """measured: all problems, with their accuracies. kept: those within `config.difficulty.keep`."""

    measured: list[Problem]
    kept: list[Problem]


def run(config: ConfigDict, output: str | Path, *, progress: Progress = lambda done, total: None) -> Difficulty:
    """Measures the problems of `config.data.train` with the model of `config.model`, or goes on where that stopped.

    Each problem gets `config.difficulty.samples` rollouts with the sampling of the first stage. Writes into `output`:
    pass_rates.jsonl, a line for each finished problem; then measured/ and kept/, datasets with cards and pass rates
    such as "3/8", and difficulty.png with the histogram of both. progress: called with problems measured so far and in
    all. Raises UserError, before anything is compiled, where config, data and model do not fit together, and where no
    problem is within the bands.
    """
    configs.check(config)
    _, stage = configs.stages(config)[0]
    tokenizer = load_tokenizer(config)
    problems = load_train_problems(config)[: config.difficulty.problems or None]
    prompts = make_prompts(problems, tokenizer, config.data.max_prompt_tokens)
    problems = [problem for problem in problems if problem.id in prompts]
    if not problems:
        raise UserError(
            f"{config.data.train}: every prompt has over config.data.max_prompt_tokens="
            f"{config.data.max_prompt_tokens} tokens"
        )
    path, settings = Path(output) / "pass_rates.jsonl", journal_settings(stage)
    with (
        hold(output) as held,
        supervision.supervised(config, output) as states,
        Journal(path, settings, PassRate) as journal,
        verifier_pool(config) as pool,
    ):
        mesh = make_mesh(config.mesh)
        model, params = load_model(config, mesh, tokenizer)
        engine = RolloutEngine(model, mesh, stage.rollout)
        states |= {"verifier": pool.state, "engine": engine.state}
        sampling, samples = make_sampling(stage.rollout, stop_ids(tokenizer)), config.difficulty.samples
        rates = pass_rates(
            params, engine, tokenizer, problems, prompts, sampling, samples, config.seed, pool, journal, progress
        )
        measured = with_accuracies(problems, {name: rate.right / rate.samples for name, rate in rates.items()})
        found = Difficulty(measured, in_bands(measured, config.difficulty.keep))
        if not found.kept:
            bands = ", ".join(f"{low:g} to {high:g}" for low, high in config.difficulty.keep)
            raise UserError(f"config.difficulty.keep: none of {len(measured)} problems has an accuracy of {bands}")
        if is_writer():
            save(found, held, config)
    return found


def pass_rates(
    params: Any,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: Mapping[str, Prompt],
    sampling: Sampling,
    samples: int,
    seed: int,
    pool: VerifierPool,
    journal: Journal,
    progress: Progress = lambda done, total: None,
) -> dict[str, PassRate]:
    """The pass rate of each problem by its id; the journal takes each as soon as it is known, and gives what it holds.

    Responses are not kept, so that memory does not grow with the problems. Of several processes each measures its
    share; all return all.
    """
    by_id = {problem.id: problem for problem in problems}
    rates = {rate.problem_id: rate for rate in journal.records if rate.problem_id in by_id}
    sampled: dict[str, list[tuple[int, Future]]] = defaultdict(list)
    complete: deque[str] = deque()

    def settle(wait: bool) -> None:
        while complete and (wait or all(verdict.done() for _, verdict in sampled[complete[0]])):
            name = complete.popleft()
            tokens, verdicts = zip(*sampled.pop(name), strict=True)
            right = sum(verdict.result().correct for verdict in verdicts)
            rates[name] = PassRate(name, right, samples, sum(tokens))
            journal.write(rates[name])
            progress(len(rates), len(problems))

    progress(len(rates), len(problems))
    todo = [prompts[problem.id] for problem in problems if problem.id not in rates]
    known = set(rates)
    for rollout in engine.generate(params, todo, samples, sampling, seed, everyones=False) if todo else ():
        name = rollout.problem_id
        verdict = pool.submit(response_text(rollout, tokenizer), by_id[name].answers)
        sampled[name].append((len(rollout.tokens), verdict))
        if len(sampled[name]) == samples:
            complete.append(name)
        settle(wait=False)
    settle(wait=True)
    for rate in chain.from_iterable(gather([asdict(rate) for name, rate in rates.items() if name not in known])):
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
    samples, source = config.difficulty.samples, config.data.train
    model = config.model.path or config.model.preset
    bands = " or ".join(f"{low:g} to {high:g}" for low, high in config.difficulty.keep)
    history = [f"{source}: {len(found.measured):,} problems, {samples} rollouts of {model} on each."]
    write_dataset(output / "measured", found.measured, title=f"{source}, measured", history=history, rollouts=samples)
    history.append(f"Kept: accuracy from {bands}; {len(found.measured) - len(found.kept):,} left out.")
    write_dataset(output / "kept", found.kept, title=f"{source}, filtered", history=history, rollouts=samples)
    accuracies = {
        "before": [problem.accuracy for problem in found.measured],
        "after": [problem.accuracy for problem in found.kept],
    }
    with staged(output / "difficulty.png") as path:
        difficulty_picture(accuracies, rollouts=samples).savefig(path, dpi=120)
