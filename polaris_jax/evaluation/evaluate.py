"""Evaluation: sample responses to problems, judge each as it finishes, and score what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from polaris_jax.errors import UserError
from polaris_jax.evaluation import scores
from polaris_jax.evaluation.records import Record, Responses, group
from polaris_jax.evaluation.votes import answer_groups
from polaris_jax.files import Journal
from polaris_jax.rewards import Reason, VerifierPool
from polaris_jax.rollout import Sampling
from polaris_jax.sampler import Sampler, sample
from polaris_jax.sharding import multihost
from polaris_jax.supervision import heartbeat
from polaris_jax.types import Problem, Prompt


class Evaluation(NamedTuple):
    """problems: those evaluated. records: every judged response. scores: what `summarize` says of them."""

    problems: list[Problem]
    records: list[Record]
    scores: dict[str, dict[str, Any]]


def evaluate(
    sampler: Sampler,
    params: Any,
    prompts: Sequence[Prompt],
    samples: int,
    sampling: Sampling,
    seed: int,
    *,
    journal: Journal | None = None,
    seen: Callable[[Record], None] = lambda record: None,
) -> Evaluation:
    """Samples `samples` responses to each prompt and scores them; each is judged while others are still sampled.

    prompts: of problems of one or several benchmarks, named by their `source`. journal: takes each record as it comes;
    problems it holds in full are not sampled again, only judged. seen: called with each record, those included. A
    sample's randomness has an address, so the result is that of an unbroken run. Of several processes each samples,
    judges and journals its share; the result is that of all.
    """
    wanted = {(p.problem.source, p.problem.id, sample) for p in prompts for sample in range(samples)}
    kept = [record for record in (journal.records if journal else ()) if _address(record) in wanted]
    problems = [prompt.problem for prompt in prompts]
    records = {_address(record): record for record in judge_again(kept, problems, sampler.verifier)}
    resumed = set(records)
    missing = {problem_id for _, problem_id, _ in wanted - resumed}
    heartbeat("responses judged", len(records), len(wanted))
    for record in records.values():
        seen(record)

    # What is missing, for each benchmark that asks it; a sample that is known already is not written twice.
    unfinished = [prompt for prompt in prompts if prompt.problem.id in missing]
    for scored in sample(sampler, params, unfinished, samples, sampling, seed, gather=False):
        record = Record(
            scored.problem.source,
            scored.problem.id,
            scored.rollout.sample,
            scored.text,
            len(scored.rollout.tokens),
            scored.rollout.finish_reason,
            scored.verdict.correct,
            str(scored.verdict.reason),
        )
        if _address(record) not in records:
            records[_address(record)] = record
            seen(record)
            if journal:
                journal.write(record)
            heartbeat("responses judged", len(records), len(wanted))

    # The records of all processes, in one order.
    new = [asdict(record) for address, record in records.items() if address not in resumed]
    for record in chain.from_iterable(multihost.gather(new)):
        records[_address(Record(**record))] = Record(**record)
    ordered = [records[address] for address in sorted(records)]
    return Evaluation(problems, ordered, summarize(problems, ordered, sampler.verifier))


def judge_again(records: Sequence[Record], problems: Sequence[Problem], verifier: VerifierPool) -> list[Record]:
    """The records with the verdicts of today: answers, rules and the verifier may have changed since they were kept."""
    asked = {(problem.source, problem.id): problem for problem in problems}
    verdicts = [verifier.submit(r.response, asked[r.benchmark, r.problem_id]) for r in records]
    judged = []
    for record, verdict in zip(records, verdicts, strict=True):
        judged.append(replace(record, correct=verdict.result().correct, reason=str(verdict.result().reason)))
        heartbeat("stored responses judged", len(judged), len(records))
    return judged


def judge(given: Sequence[Responses], verifier: VerifierPool) -> Evaluation:
    """Judges and scores responses that were sampled elsewhere (`records.read_responses`)."""
    verdicts = [[verifier.submit(response, row.problem) for response in row.responses] for row in given]
    records = [
        Record(
            row.problem.source,
            row.problem.id,
            sample,
            row.responses[sample],
            row.lengths[sample],
            row.finish_reasons[sample],
            verdict.result().correct,
            str(verdict.result().reason),
        )
        for row, futures in zip(given, verdicts, strict=True)
        for sample, verdict in enumerate(futures)
    ]
    problems = [row.problem for row in given]
    return Evaluation(problems, records, summarize(problems, records, verifier))


def summarize(
    problems: Sequence[Problem], records: Sequence[Record], verifier: VerifierPool
) -> dict[str, dict[str, Any]]:
    """The scores of each benchmark, ready for JSON.

    Per benchmark: `problems`; `samples`, K of each problem; `avg@K`, `pass@k` for k = 1, 2, 4, ... and K, `maj@K` and
    `length` (tokens), each as {mean, low, high} with the 95% interval over problems; the shares `no_box` (nothing
    boxed after the thinking) and `cut_off` (ended by the token limit); `reasons`, the share of each verdict;
    `accuracies`, the share of right samples by problem id. What is not known is None. Raises UserError where problems
    have different numbers of samples.
    """
    grouped = group(records)
    result = {}
    for benchmark in dict.fromkeys(problem.source for problem in problems):
        members = [problem for problem in problems if problem.source == benchmark]
        rows = [grouped.get((benchmark, problem.id), []) for problem in members]
        counts = [len(row) for row in rows]
        if min(counts) < max(counts) or not min(counts):
            raise UserError(
                f"{benchmark}: problems have {min(counts)} to {max(counts)} responses, expected the same number of each"
            )
        result[benchmark] = _scores(members, rows, verifier)
    return result


def _scores(problems: list[Problem], rows: list[list[Record]], verifier: VerifierPool) -> dict[str, Any]:
    samples = len(rows[0])
    every = [record for row in rows for record in row]
    correct_PK = np.array([[record.correct for record in row] for row in rows])
    ks = [k for k in (2**i for i in range(samples.bit_length())) if k < samples] + [samples]
    reasons = Counter(record.reason for record in every)
    lengths = None
    if all(record.length is not None for record in every):
        lengths = np.mean([[record.length for record in row] for row in rows], axis=1)
    cut_off = None
    if all(record.finish_reason is not None for record in every):
        cut_off = sum(record.finish_reason == "length" for record in every) / len(every)
    return {
        "problems": len(problems),
        "samples": samples,
        f"avg@{samples}": _interval(scores.average(correct_PK)),
        **{f"pass@{k}": _interval(scores.pass_at_k(correct_PK, k)) for k in ks},
        f"maj@{samples}": _interval(scores.majority(answer_groups(problems, rows, verifier), correct_PK)),
        "length": None if lengths is None else _interval(lengths, (0, np.inf)),
        "no_box": (reasons[Reason.NO_BOX] + reasons[Reason.NO_THINK_END]) / len(every),
        "cut_off": cut_off,
        "reasons": {str(reason): count / len(every) for reason, count in sorted(reasons.items())},
        "accuracies": {p.id: float(share) for p, share in zip(problems, scores.average(correct_PK), strict=True)},
    }


def _interval(values_P: np.ndarray, bounds: tuple[float, float] = (0.0, 1.0)) -> dict[str, float | None]:
    found = scores.estimate(values_P, bounds)._asdict()
    return {name: None if np.isnan(value) else float(value) for name, value in found.items()}


def _address(record: Record) -> tuple[str, str, int]:
    return record.benchmark, record.problem_id, record.sample
