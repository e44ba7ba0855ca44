"""Judged responses: as parquet when all are there, and read from parquet of others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from polaris_jax.data.problems import parse_problem
from polaris_jax.data.rows import RowError, collect
from polaris_jax.files import staged
from polaris_jax.types import Problem

PROMPT_COLUMNS = ("prompts", "prompt", "problem", "question")
RESPONSE_COLUMNS = ("responses", "response", "outputs", "output")
_CHATML_USER = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True)
class Record:
    """One judged response.

    benchmark: source of its problem. problem_id, sample: whose response, and which of its samples (0-based).
    response: the text without the token that stopped it. length: in tokens, or None where unknown.
    finish_reason: "stop", "length" or None where unknown. correct, reason: the verifier's verdict.
    """

    benchmark: str
    problem_id: str
    sample: int
    response: str
    length: int | None
    finish_reason: str | None
    correct: bool
    reason: str


def write_parquet(path: str | Path, problems: Sequence[Problem], records: Sequence[Record]) -> None:
    """One row a problem: the columns of the released files, and `responses` with `lengths`, `finish_reasons`,
    `correct` and `reasons`, lists in the samples' order. The file appears whole or not at all.
    `read_responses` reads it again."""
    grouped = group(records)
    rows = []
    for index, problem in enumerate(problems):
        samples = grouped.get((problem.source, problem.id), [])
        rows.append(
            {
                "data_source": problem.source,
                "prompt": [{"role": "user", "content": problem.question}],
                "ability": problem.kind,
                "reward_model": {"ground_truth": list(problem.answers), "style": "rule"},
                "extra_info": {
                    "index": index,
                    "split": "test",
                    "id": problem.id,
                    "kind": problem.kind,
                    "metadata": problem.metadata,
                },
                "responses": [record.response for record in samples],
                "lengths": [record.length for record in samples],
                "finish_reasons": [record.finish_reason for record in samples],
                "correct": [record.correct for record in samples],
                "reasons": [str(record.reason) for record in samples],
            }
        )
    with staged(path) as staging:
        pd.DataFrame(rows).to_parquet(staging)


def group(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records of each (benchmark, problem id), in the samples' order; a sample given twice counts once."""
    by_sample = {(record.benchmark, record.problem_id, record.sample): record for record in reversed(records)}
    grouped: dict[tuple[str, str], list[Record]] = {}
    for key in sorted(by_sample):
        grouped.setdefault(key[:2], []).append(by_sample[key])
    return grouped


@dataclass(frozen=True)
class Responses:
    """Responses to one problem that somebody else sampled; `lengths` and `finish_reasons` hold None where unknown."""

    problem: Problem
    responses: tuple[str, ...]
    lengths: tuple[int | None, ...]
    finish_reasons: tuple[str | None, ...]


def read_responses(
    path: str | Path, known: Sequence[Problem] = (), *, suffix: str, skipped: list[str] | None = None
) -> list[Responses]:
    """Responses from a parquet or jsonl file: a row has a prompt (`prompts`, `prompt`, `problem` or `question`) and
    `responses` (a list) or `response` (a text), and an answer as in `load_problems`.

    A prompt is a text, also one in ChatML, or a list of messages. Where a row has no answer, the problem in `known`
    with the same question is taken. Rows of one problem are joined in their order. `lengths` and `finish_reasons` are
    read where there are such columns. Rows that cannot be used are listed in `skipped`; raises UserError when none is
    left.
    """
    by_id = {problem.id: problem for problem in known}
    joined: dict[str, Responses] = {}
    for _, row in collect(path, lambda row: _parse_responses(row, by_id, suffix, Path(path).stem), skipped=skipped):
        earlier = joined.get(row.problem.id)
        joined[row.problem.id] = row if earlier is None else _join(earlier, row)
    return list(joined.values())


def _join(first: Responses, second: Responses) -> Responses:
    return Responses(
        first.problem,
        first.responses + second.responses,
        first.lengths + second.lengths,
        first.finish_reasons + second.finish_reasons,
    )


def _parse_responses(row: dict[str, Any], by_id: dict[str, Problem], suffix: str, source: str) -> Responses:
    responses = next((row[column] for column in RESPONSE_COLUMNS if row.get(column) is not None), None)
    if responses is None:
        raise RowError(f"no responses; found the columns {', '.join(row)}, expected `responses` or `response`")
    responses = [responses] if isinstance(responses, str) else responses
    if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
        raise RowError("responses is neither a text nor a list of texts")
    if not responses:
        raise RowError("responses is empty")
    count = len(responses)
    lengths = _aligned(row, ("lengths", "length"), count)
    if not all(length is None or (isinstance(length, int) and length >= 0) for length in lengths):
        raise RowError("lengths holds something else than numbers of tokens")
    finish_reasons = _aligned(row, ("finish_reasons", "finish_reason"), count)
    return Responses(_problem(row, by_id, suffix, source), tuple(responses), lengths, finish_reasons)


def _problem(row: dict[str, Any], by_id: dict[str, Problem], suffix: str, source: str) -> Problem:
    prompt = next((row[column] for column in PROMPT_COLUMNS if row.get(column) is not None), None)
    if isinstance(prompt, str) and (turns := _CHATML_USER.findall(prompt)):
        prompt = turns[-1]
    if isinstance(prompt, list):  # a system message does not change whose question it is
        prompt = [message for message in prompt if not isinstance(message, dict) or message.get("role") != "system"]
    row = {key: value for key, value in row.items() if key not in PROMPT_COLUMNS} | {"prompt": prompt}
    try:
        return parse_problem(row, suffix=suffix, source=source)
    except RowError:
        bare = parse_problem(row | {"reward_model": None, "answer": "?"}, suffix=suffix)
        if bare.id in by_id:
            return by_id[bare.id]
        raise


def _aligned(row: dict[str, Any], columns: tuple[str, ...], count: int) -> tuple[Any, ...]:
    values = next((row[column] for column in columns if row.get(column) is not None), [None] * count)
    values = values if isinstance(values, list) else [values]
    if len(values) != count:
        raise RowError(f"{columns[0]} has {len(values)} entries for {count} responses")
    return tuple(values)
