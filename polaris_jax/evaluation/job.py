"""The evaluation of a model on benchmarks as a job: an output directory from which a second start resumes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from polaris_jax import config as configs
from polaris_jax import hf, supervision
from polaris_jax.data import arithmetic, gym
from polaris_jax.data.problems import BENCHMARKS, HUB_BENCHMARKS, benchmark, load_problems
from polaris_jax.data.prompts import make_prompts
from polaris_jax.errors import UserError
from polaris_jax.evaluation.evaluate import Evaluation, evaluate, judge
from polaris_jax.evaluation.outlook import WORTH_IT, Outlook, forecast, measured_speed, told
from polaris_jax.evaluation.records import Record, read_responses, write_parquet
from polaris_jax.evaluation.report import warnings
from polaris_jax.files import Journal, write_whole
from polaris_jax.models.presets import ModelConfig
from polaris_jax.rewards.answers import THINK_END
from polaris_jax.rollout import RolloutEngine
from polaris_jax.runs.start import load_model, load_tokenizer
from polaris_jax.runs.workdir import hold
from polaris_jax.sampler import Sampler, make_sampling, verifier_pool, with_think_rule
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.multihost import is_writer
from polaris_jax.types import Problem

_SAMPLES = re.compile(r":(\d{1,6})$")
_ON_HUB = HUB_BENCHMARKS | {place.partition(":")[0]: place for place in HUB_BENCHMARKS.values()}
ARITHMETIC_PROBLEMS = 256  # of the endless supply, where `evaluation.max_problems` sets no number
GYM_PROBLEMS = 128  # of each dataset, likewise


def run(config: ConfigDict, output: str | Path) -> Evaluation:
    """Evaluates the model of `config.model` as `config.evaluation` says, or resumes the evaluation in `output`.

    A benchmark's name may say how many responses its problems get, such as "aime24:32"; the others get
    `config.evaluation.samples`. No prompt is too long here: `config.data.max_prompt_tokens` is for training.

    Writes into `output`: responses.jsonl while it samples, then responses.parquet and scores.json. Raises UserError,
    before anything is compiled, where config, model, benchmarks and `output` do not fit together.
    """
    configs.check(config)
    problems = problems_by_samples(config)
    tokenizer = load_tokenizer(config)
    config = with_think_rule(config, tokenizer)
    path, settings = Path(output) / "responses.jsonl", response_settings(config)
    with (
        hold(output) as held,
        supervision.display("evaluation"),
        supervision.supervised(config, output) as states,
        Journal(path, settings, Record) as journal,
        verifier_pool(config) as verifier,
    ):
        mesh = make_mesh(config.mesh)
        model, params = load_model(config, mesh, tokenizer)
        engine = make_engine(model, mesh, config)
        states |= {"verifier": verifier.state, "engine": engine.state}
        sampler = Sampler(engine, tokenizer, verifier)
        announce(sampler, params, problems, config, known=len(journal.records))
        result = evaluate_all(sampler, params, problems, config, journal)
        settings |= {"require_think": config.reward.require_think}
        save(held, result, config.model.path or config.model.preset, settings)
    return result


def problems_by_samples(config: ConfigDict) -> dict[int, list[Problem]]:
    """The problems of `config.evaluation.benchmarks`, by the number of responses each gets. Raises UserError."""
    c = config.evaluation
    by_samples: dict[int, list[Problem]] = {}
    for name in c.benchmarks:
        samples = samples_of(name, c.samples)
        found = load_benchmarks([name], suffix=config.data.suffix, most=c.max_problems, seed=config.seed)
        by_samples.setdefault(samples, []).extend(found)
    if not by_samples:
        raise UserError("config.evaluation.benchmarks: empty; name at least one")
    return by_samples


def announce(
    sampler: Sampler, params: Any, by_samples: Mapping[int, Sequence[Problem]], config: ConfigDict, *, known: int
) -> None:
    """Prints how long the evaluation is going to take, from a short measurement of its speed. known: responses that are
    there already. Says nothing where it ends soon."""
    sampling = make_sampling(config.evaluation, hf.stop_ids(sampler.tokenizer))
    missing = sum(samples * len(problems) for samples, problems in by_samples.items()) - known
    samples, problems = next(iter(by_samples.items()))
    if missing > 0 and sampling.max_response_tokens > WORTH_IT * config.rollout.tokens_per_call:
        supervision.heartbeat("measuring the speed")
        prompts = make_prompts(problems, sampler.tokenizer)
        speed = measured_speed(sampler.engine, params, prompts, samples, sampling)
        if is_writer():
            print(f"evaluation: {forecast(missing, sampling.max_response_tokens, speed)}", flush=True)


def evaluate_all(
    sampler: Sampler,
    params: Any,
    by_samples: Mapping[int, Sequence[Problem]],
    config: ConfigDict,
    journal: Journal | None = None,
) -> Evaluation:
    """`evaluate` on each of `problems_by_samples`, with the sampling of `config.evaluation`, as one evaluation."""
    sampling = make_sampling(config.evaluation, hf.stop_ids(sampler.tokenizer))
    outlook, results = Outlook(sampler.engine, by_samples, sampling.max_response_tokens), []
    with told(outlook, sampler.verifier):
        for samples, problems in by_samples.items():
            prompts = make_prompts(problems, sampler.tokenizer)
            outlook.begin()
            found = evaluate(
                sampler, params, prompts, samples, sampling, config.seed, journal=journal, seen=outlook.add
            )
            results.append(found)
    result = _joined(results)
    warn(result, config)
    return result


def judge_file(path: str | Path, config: ConfigDict, output: str | Path) -> tuple[Evaluation, list[str]]:
    """Scores the responses in a parquet or jsonl file (`records.read_responses`), answers from the file or, where it
    has none, from the shipped benchmarks. Where `config.reward.require_think` is "auto", only text after </think>
    counts if any response has one. Writes into `output` as `run` does; also returns the rows left out."""
    known = load_benchmarks(BENCHMARKS, suffix=config.data.suffix)
    skipped: list[str] = []
    given = read_responses(path, known, suffix=config.data.suffix, skipped=skipped)
    if config.reward.require_think == "auto":
        thinks = any(THINK_END in response for row in given for response in row.responses)
        config = configs.override(config, {"reward.require_think": "yes" if thinks else "no"})
    with hold(output) as held, verifier_pool(config) as verifier:
        result = judge(given, verifier)
        save(held, result, str(path), {"require_think": config.reward.require_think})
    warn(result, config)
    return result, skipped


def load_benchmarks(names: Sequence[str], *, suffix: str, most: int = 0, seed: int = 0) -> list[Problem]:
    """The problems of several benchmarks, at most `most` of each (0: all).

    A name is one of `BENCHMARKS`, one of `HUB_BENCHMARKS`, "arithmetic" or "long_arithmetic" (held-out problems of
    `data.arithmetic`, drawn with `seed`), "reasoning_gym:DATASET" (its held-out problems), or a dataset as in
    `load_problems`, all of whose problems are then called by that name. A number of samples behind it is ignored.
    """
    problems: list[Problem] = []
    for name in names:
        name = _SAMPLES.sub("", name)
        if name in BENCHMARKS:
            found = benchmark(name, suffix=suffix)
        elif task := arithmetic.TASKS.get(name):
            found = arithmetic.problems("test", most or ARITHMETIC_PROBLEMS, suffix, seed, task)
        elif name.startswith(gym.PREFIX):
            found = gym.problems(name, "test", most or GYM_PROBLEMS, suffix, seed)
        elif "/" not in name and not os.path.exists(name) and name not in HUB_BENCHMARKS:
            known = ", ".join((*BENCHMARKS, *HUB_BENCHMARKS))
            raise UserError(f"{name}: no such benchmark; expected {known}, arithmetic or a dataset")
        else:
            loaded = load_problems(_ON_HUB.get(name, name), suffix=suffix)
            found = [replace(problem, source=name) for problem in loaded]
        problems += found if name.startswith(gym.PREFIX) else found[: most or None]  # so many of each of its datasets
    return problems


def samples_of(name: str, default: int) -> int:
    """The number of samples behind a benchmark's name, as in "aime24:32", else `default`. Raises UserError below 1."""
    given = _SAMPLES.search(name)
    samples = int(given[1]) if given else default
    if samples < 1:
        raise UserError(f"config.evaluation: expected at least 1 sample of {name}, found {samples}")
    return samples


def engine_config(config: ConfigDict) -> ConfigDict:
    """`config.rollout` for the engine: evaluation's token limit, its YaRN factor where larger, unquantised weights."""
    engine, c = config.rollout.copy_and_resolve_references(), config.evaluation
    with engine.unlocked():
        engine.max_response_tokens, engine.weights = c.max_response_tokens, ""
        engine.yarn_factor = max(engine.yarn_factor, c.yarn_factor)
    return engine


def make_engine(model: ModelConfig, mesh: Mesh, config: ConfigDict) -> RolloutEngine:
    """The engine of an evaluation, with `engine_config` and a page pool of its own. Raises UserError as that does."""
    return RolloutEngine(model, mesh, engine_config(config), limit_key="evaluation.max_response_tokens")


def save(output: str | Path, result: Evaluation, model: str, settings: dict[str, Any]) -> None:
    """Writes responses.parquet and scores.json, each whole or not at all; of several processes one does."""
    if not is_writer():
        return
    output = Path(output)
    write_parquet(output / "responses.parquet", result.problems, result.records)
    report = {"model": model, "settings": settings, "scores": result.scores}
    write_whole(output / "scores.json", json.dumps(report, indent=2, allow_nan=False) + "\n")


def warn(result: Evaluation, config: ConfigDict) -> None:
    """Logs what makes scores low for another reason than wrong answers (`report.warnings`)."""
    if is_writer():
        for text in warnings(result.scores, config.evaluation.max_response_tokens):
            logging.warning(text)


def _joined(results: Sequence[Evaluation]) -> Evaluation:
    return Evaluation(
        [problem for result in results for problem in result.problems],
        [record for result in results for record in result.records],
        {benchmark: scores for result in results for benchmark, scores in result.scores.items()},
    )


def response_settings(config: ConfigDict) -> dict[str, Any]:
    """All that a response's text depends on, but for its problem and its number. Verdicts are given anew each time."""
    c, checkpoints = config.evaluation, Path(config.model.path) / "checkpoints"
    steps = [int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()] if os.path.isdir(checkpoints) else []
    return {
        "model": config.model.path or config.model.preset,
        "tokenizer": config.model.tokenizer or config.model.path,
        "checkpoint": max(steps, default=None),
        "dtype": config.model.dtype,
        "seed": config.seed,
        "suffix": config.data.suffix,
        "temperature": c.temperature,
        "top_p": c.top_p,
        "top_k": c.top_k,
        "max_response_tokens": c.max_response_tokens,
        "yarn_factor": engine_config(config).yarn_factor,
        "yarn_attention_factor": config.rollout.yarn_attention_factor,
        "yarn_original": config.rollout.yarn_original,
    }
