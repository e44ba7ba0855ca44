"""The one way to sample and verify: used by training, evaluation, difficulty, the temperature probe and its search."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from polaris_jax.config import override
from polaris_jax.rewards import Verdict, VerifierPool
from polaris_jax.rewards.functions import RewardFunction
from polaris_jax.rewards.kept import KeptVerdicts
from polaris_jax.rewards.verdict import from_json
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.rollout.codec import rollouts_of_others
from polaris_jax.rollout.store import stored
from polaris_jax.sharding import multihost
from polaris_jax.types import Problem, Prompt, Rollout


class Sampler(NamedTuple):
    """What samples and judges.

    engine: with the model and its mesh. verifier: worker processes that check answers. functions: rewards beside the
    verdict that these compute of each response; only training has some.
    """

    engine: RolloutEngine
    tokenizer: PreTrainedTokenizerBase
    verifier: VerifierPool
    functions: tuple[RewardFunction, ...] = ()


class Scored(NamedTuple):
    """A judged response. text: the response without the token that stopped it."""

    problem: Problem
    rollout: Rollout
    text: str
    verdict: Verdict


def sample(
    sampler: Sampler,
    params: Any,
    prompts: Sequence[Prompt],
    samples: int,
    sampling: Sampling,
    seed: int,
    *,
    store: Path | None = None,
    gather: bool = True,
) -> Iterator[Scored]:
    """Samples `samples` responses to each prompt and yields each when it is judged, while others still decode.

    A problem that is asked twice, as by two benchmarks, is sampled once and judged for each. seed: as in
    `RolloutEngine.generate`. store: a file that keeps finished rollouts for a repetition of the same call
    (`rollout/store.py`); their verdicts are kept beside it, in STORE.verdicts. Of several processes each samples and
    judges its share; with `gather` all then yield the responses of all. Raises UserError for a prompt that cannot fit,
    before anything is compiled.
    """
    problems: dict[str, list[Problem]] = {}
    for prompt in prompts:
        problems.setdefault(prompt.problem.id, []).append(prompt.problem)
    distinct = list({prompt.problem.id: prompt for prompt in prompts}.values())
    rollouts = stored(sampler.engine, params, distinct, samples, sampling, seed, store) if distinct else ()
    share: list[Scored] = []
    with KeptVerdicts(store and store.with_name(f"{store.name}.verdicts")) as kept:
        for scored in _judged(sampler, problems, rollouts, kept):
            if gather and jax.process_count() > 1:
                share.append(scored)
            yield scored
    if gather and jax.process_count() > 1:  # afterwards all processes hold the same again
        yield from _of_others(share, problems, sampler.tokenizer)


def response_text(rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> str:
    """The response without the token that stopped it."""
    return tokenizer.decode(rollout.tokens[:-1] if rollout.finish_reason == "stop" else rollout.tokens)


def make_sampling(section: ConfigDict, stop_ids: Sequence[int]) -> Sampling:
    """How to sample as a section of the config says: `rollout` in training, `evaluation` in evaluation."""
    return Sampling(
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        max_response_tokens=section.max_response_tokens,
        stop_ids=tuple(stop_ids),
    )


def with_think_rule(config: ConfigDict, tokenizer: PreTrainedTokenizerBase) -> ConfigDict:
    """The config with `reward.require_think` decided: where it is "auto", "yes" for a chat template that opens thoughts
    or takes them out of earlier answers, and "no" for the others. Says which."""
    if config.reward.require_think != "auto":
        return config
    template = tokenizer.chat_template
    thinks = any(tag in str(template) for tag in ("<think>", "</think>"))
    if multihost.is_writer():
        what = "only text after </think> counts" if thinks else "all of a response counts"
        which = "has thoughts" if thinks else "has no thoughts"
        print(f"reward: {what}, since the chat template {which} (config.reward.require_think=yes or no)", flush=True)
    return override(config, {"reward.require_think": "yes" if thinks else "no"})


def verifier_pool(config: ConfigDict) -> VerifierPool:
    """The workers that check answers, as `config.reward` says; "auto" is to be decided before (`with_think_rule`)."""
    c = config.reward
    return VerifierPool(
        workers=c.workers,
        timeout_s=c.timeout_s,
        memory_bytes=int(c.memory_gib * 2**30),
        require_think=c.require_think != "no",
    )


def _judged(
    sampler: Sampler, problems: Mapping[str, Sequence[Problem]], rollouts: Iterable[Rollout], kept: KeptVerdicts
) -> Iterator[Scored]:
    """The rollouts, judged for each problem of their id: in their order, each as soon as its verdict is known.

    A verdict is kept before it is given out, so that whoever saw one sees no other after a restart.
    """
    waiting: deque[tuple[Problem, Rollout, str, Future[Verdict]]] = deque()
    functions = [f"{function.name} {function.sha256}" for function in sampler.functions]

    def judged_by(problem: Problem) -> list[str]:
        return [*problem.answers, problem.kind, problem.metadata, *functions]

    def submitted(text: str, problem: Problem) -> Future[Verdict]:
        verdict = kept.find(text, judged_by(problem))
        if verdict is None:
            scored_too = (sampler.functions,) if functions else ()
            return sampler.verifier.submit(text, problem, *scored_too)
        known_already: Future[Verdict] = Future()
        known_already.set_result(verdict)
        return known_already

    def known(wait: bool) -> Iterator[Scored]:
        while waiting and (wait or waiting[0][-1].done()):
            problem, rollout, text, verdict = waiting.popleft()
            kept.keep(text, judged_by(problem), verdict.result())
            yield Scored(problem, rollout, text, verdict.result())

    for rollout in rollouts:
        text = response_text(rollout, sampler.tokenizer)
        for problem in problems[rollout.problem_id]:
            waiting.append((problem, rollout, text, submitted(text, problem)))
        yield from known(wait=False)
    yield from known(wait=True)


def _of_others(
    share: Sequence[Scored], problems: Mapping[str, Sequence[Problem]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Scored]:
    """The judged responses of the other processes, in the order of the processes; all call it with their own."""
    verdicts = [[s.problem.source, s.problem.id, s.rollout.sample, asdict(s.verdict)] for s in share]
    gathered = chain.from_iterable(multihost.gather(verdicts))
    judged = {tuple(address): from_json(verdict) for *address, verdict in gathered}
    own = {(s.rollout.problem_id, s.rollout.sample): s.rollout for s in share}
    for rollout in rollouts_of_others(list(own.values())):
        text = response_text(rollout, tokenizer)
        for problem in problems[rollout.problem_id]:
            yield Scored(problem, rollout, text, judged[problem.source, problem.id, rollout.sample])
