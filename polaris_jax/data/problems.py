"""Problems and chats from files and the hub: what a row means, and which rows cannot be used."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from polaris_jax.data.choices import letter_of, names_option, options_of, with_options
from polaris_jax.data.ground_truths import parse_answers
from polaris_jax.data.instructions import without_instructions
from polaris_jax.data.rows import RowError, checked_text, collect, summary
from polaris_jax.errors import UserError
from polaris_jax.rewards.kinds import KINDS
from polaris_jax.types import Problem

SUFFIX = r"Let's think step by step and output the final answer within \boxed{}."
BENCHMARKS = ("aime24", "aime25", "amc23", "minerva", "olympiad")
# Benchmarks that do not ship with the package, and where they lie on the hub. The licence of MathArena's, CC BY-NC-SA
# 4.0, keeps them out of it.
HUB_BENCHMARKS = {
    "hmmt25": "MathArena/hmmt_feb_2025",
    "aime26": "MathArena/aime_2026",
    "math500": "HuggingFaceH4/MATH-500:test",
    "gsm8k": "openai/gsm8k:main:test",
}
QUESTION_COLUMNS = ("problem", "question", "prompt")
ANSWER_COLUMNS = ("answer", "answers", "solutions", "ground_truth")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys of a message
ROLES = ("system", "user", "assistant", "tool")

_CHAT_MARKS = re.compile(r"^\s*<｜User｜>|<｜Assistant｜>\s*(<think>)?\s*$")  # AReaL-boba's questions wear a template


def load_problems(source: str | Path, *, suffix: str = SUFFIX, skipped: list[str] | None = None) -> list[Problem]:
    """The problems of a jsonl, json or parquet file, a directory of those, or a hub dataset (`data/rows.py`).

    Two layouts are read. Released files: `prompt` (a list of one user message), `reward_model.ground_truth`,
    `data_source`. Plain rows: `problem`, `question` or `prompt` (text), with `answer`, `answers`, `solutions` or
    `ground_truth`. A ground truth is a text, a number (142.0 is the answer 142) or a list of alternatives. A
    `difficulty` "3/8" (also in `extra_info`), the share of right rollouts, becomes the problem's accuracy. `kind` (also
    in `extra_info`) says how answers are judged. The `choices` or `options` of a `choice` are put behind its question;
    its answer is a letter, a number from 0 or one of the texts.

    suffix: ends every question exactly once, whether or not the row had it; "" gives bare questions.
    skipped: receives a line in words for each row left out: unusable, or with the same question as an earlier row.
    A problem's id is a hash of its bare question, so it does not change with the suffix, the file or the order.
    Raises UserError for a missing or unreadable source and for a file without a usable row.
    """
    name = _source_name(source)
    problems, places, repeated = {}, {}, []
    for place, problem in collect(source, lambda row: parse_problem(row, suffix=suffix, source=name), skipped=skipped):
        first = problems.setdefault(problem.id, problem)
        if first is problem:
            places[problem.id] = place
        else:
            other = "" if set(first.answers) & set(problem.answers) else ", with another answer"
            repeated.append(f"{place}: same question as {places[problem.id]}{other}")
    if repeated:
        logging.warning("%d repeated questions of %s skipped: %s", len(repeated), source, summary(repeated))
        if skipped is not None:
            skipped.extend(repeated)
    return list(problems.values())


def benchmark(name: str, *, suffix: str = SUFFIX) -> list[Problem]:
    """The problems of a benchmark that ships with the package: aime24, aime25, amc23, minerva or olympiad.

    Their `source` is the benchmark's name. Raises UserError for another name.
    """
    if name not in BENCHMARKS:
        raise UserError(f"{name}: no such benchmark; expected one of {', '.join(BENCHMARKS)}")
    with resources.as_file(resources.files("polaris_jax.data") / "benchmarks" / f"{name}.parquet") as path:
        return [replace(problem, source=name) for problem in load_problems(path, suffix=suffix)]


def chat_rows(source: str | Path, *, skipped: list[str] | None = None) -> list[list[dict[str, str]]]:
    """The conversations of a dataset with `messages`: lists of {role, content}, to learn the assistant's turns from.

    source, skipped and errors are as for `load_problems`. A row is skipped unless it has messages whose role is system,
    user, assistant or tool and whose content is a text, the last one the assistant's. A message's thoughts, under
    `reasoning_content`, `reasoning` or `thinking`, are kept as `reasoning_content` where they are a text.
    """
    return [messages for _, messages in collect(source, parse_chat, skipped=skipped)]


def problem_id(question: str) -> str:
    """16 hexadecimal digits that name a bare question, whatever its white space."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:16]


def bare_question(question: str, suffix: str = SUFFIX) -> str:
    """The question without the suffix, other instructions, and template marks around it."""
    before = None
    while question != before:
        before = question
        question = without_suffix(_CHAT_MARKS.sub("", question), suffix)
        question = without_instructions(question)
    return question


def without_suffix(question: str, suffix: str) -> str:
    """The question without the suffix and white space around it."""
    question, words = question.strip(), suffix.split()
    return re.sub(r"\s+".join(map(re.escape, words)) + r"\s*$", "", question).strip() if words else question


def parse_problem(row: dict[str, Any], *, suffix: str = SUFFIX, source: str = "") -> Problem:
    """One row as a Problem (layouts: `load_problems`); `source` where the row names none. Raises RowError."""
    extra = row.get("extra_info") if isinstance(row.get("extra_info"), dict) else {}
    written, answers, options = _question(row), _ground_truth(row), options_of(row)
    kind = row.get("kind") or extra.get("kind")
    if kind is None:
        kind = "choice" if options and names_option(answers, options) else "math"
    if kind not in KINDS:
        raise RowError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    bare = without_suffix if kind == "reasoning_gym" else bare_question  # whose scorers ask for what questions say
    question = bare(written, suffix)
    if not question:
        raise RowError("question is empty")
    if kind == "choice":
        question, answers = with_options(question, options) if options else question, letter_of(answers, options)
    data_source, metadata = row.get("data_source"), extra.get("metadata") or ""
    return Problem(
        id=problem_id(question),
        question=with_suffix(question, suffix),
        answers=parse_answers(answers) if kind in ("math", "choice") else (_text_answer(answers),),
        source=data_source if isinstance(data_source, str) and data_source else source,
        accuracy=_accuracy(row.get("difficulty", extra.get("difficulty"))),
        kind=kind,
        metadata=checked_text(metadata, "metadata"),
    )


def with_suffix(question: str, suffix: str) -> str:
    """A bare question with the suffix behind it."""
    return f"{question} {suffix.strip()}".strip()


def parse_chat(row: dict[str, Any]) -> list[dict[str, str]]:
    """One row's `messages`, checked (see `chat_rows`). Raises RowError."""
    messages = row.get("messages")
    if messages is None:
        raise RowError(f"no messages; found the columns {_names(row)}, expected `messages`")
    if not isinstance(messages, list) or not messages:
        raise RowError("messages is empty or no list")
    checked = [_message(message, number) for number, message in enumerate(messages, start=1)]
    if checked[-1]["role"] != "assistant":
        raise RowError(f"the last message is the {checked[-1]['role']}'s, expected the assistant's")
    return checked


def _message(message: Any, number: int) -> dict[str, str]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, dict) else message
        raise RowError(f"message {number} has the role {role!r}, expected one of {', '.join(ROLES)}")
    content = checked_text(message.get("content"), f"content of message {number}")
    if message["role"] == "assistant" and not content.strip():
        raise RowError(f"message {number}, the assistant's, is empty")
    checked = {"role": message["role"], "content": content}
    thoughts = next((message[key] for key in THOUGHTS if isinstance(message.get(key), str)), None)
    if thoughts is not None:
        checked["reasoning_content"] = checked_text(thoughts, f"reasoning of message {number}")
    return checked


def _question(row: dict[str, Any]) -> str:
    column = _column(row, QUESTION_COLUMNS)
    if column is None:
        raise RowError(f"no question; found the columns {_names(row)}, expected one of {', '.join(QUESTION_COLUMNS)}")
    value = row[column]
    if isinstance(value, list):
        roles = [message.get("role") if isinstance(message, dict) else None for message in value]
        if roles != ["user"]:
            raise RowError(f"{column} holds messages of {roles}, expected one of the user")
        value = value[0].get("content")
    return checked_text(value, column)


def _ground_truth(row: dict[str, Any]) -> Any:
    reward_model = row.get("reward_model")
    known = {column: row[column] for column in ANSWER_COLUMNS if column in row}
    if isinstance(reward_model, dict) and "ground_truth" in reward_model:
        known = {"reward_model.ground_truth": reward_model["ground_truth"]} | known
    column = _column(known, tuple(known))
    if column is None:
        expected = f"reward_model.ground_truth or one of {', '.join(ANSWER_COLUMNS)}"
        raise RowError(f"no answer; found the columns {_names(row)}, expected {expected}")
    return known[column]


def _text_answer(answer: Any) -> str:
    """An answer that is taken as it is written."""
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    text = str(answer) if isinstance(answer, int | float) else checked_text(answer, "answer")
    if not text.strip():
        raise RowError("answer is empty")
    return text


def _column(row: dict[str, Any], columns: Sequence[str]) -> str | None:
    """The first of the columns that holds a value; where all are empty, the first that is there."""
    there = [column for column in columns if column in row]
    return next((column for column in there if not _is_empty(row[column])), there[0] if there else None)


def _is_empty(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_empty, value))
    return value is None or (isinstance(value, str) and not value.strip()) or value != value  # NaN


def _accuracy(difficulty: Any) -> float | None:
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", difficulty) if isinstance(difficulty, str) else None
    if match is None or not int(match[1]) <= int(match[2]) > 0:
        return None
    return int(match[1]) / int(match[2])


def _source_name(source: str | Path) -> str:
    path = Path(source)
    return path.stem if os.path.exists(path) else str(source)


def _names(row: dict[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"
