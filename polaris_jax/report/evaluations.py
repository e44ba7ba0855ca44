"""What the report shows of evaluations: the scores, and each problem in all of them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from polaris_jax.errors import UserError
from polaris_jax.evaluation.report import load_runs
from polaris_jax.report.parts import fitting, short, spread
from polaris_jax.rewards.answers import THINK_END, final_box

BUDGET = 5_000_000  # bytes of the page
CAPS = (2**21, 2**14, 2**12, 2**10)  # characters of a response's thoughts, and of the rest
ENOUGH = 100  # problems
MOST = 5000  # problems
PER_KIND = 2  # right responses of a problem in an evaluation, and wrong ones


def collect(found: Mapping[str, Path]) -> dict[str, Any]:
    """Names and scores of the evaluations, oldest first, and their problems with a few responses each.

    A problem has, for each evaluation that asked it, a text of 1 and 0, whether each of its responses is right.
    """
    scores, problems = [], {}
    for number, (name, directory) in enumerate(found.items()):
        scores.append({"name": name, "benchmarks": _scores(directory)})
        for row in _rows(directory / "responses.parquet"):
            key = row["data_source"], row["extra_info"]["id"]
            problem = problems.setdefault(key, {"row": row, "runs": [None] * len(found)})
            problem["runs"][number] = row
    keys = [list(problems)[i] for i in sorted(spread(len(problems))[:MOST])]
    order = [keys[i] for i in spread(len(keys))]
    with_texts = fitting(order, lambda key, cap: [_problem(key, problems[key], cap)], BUDGET, CAPS, ENOUGH)
    known = {(row["benchmark"], row["id"]): row for row in with_texts}
    return {
        "runs": scores,
        "problems": [known.get(key) or _problem(key, problems[key], 0) for key in keys],
        "without_texts": len(keys) - len(known),
        "left_out": len(problems) - len(keys),
    }


def _scores(directory: Path) -> dict[str, Any]:
    (found,) = load_runs([directory]).values()
    kept = {}
    for benchmark, one in found.items():
        k = one["samples"]
        kept[benchmark] = {"samples": k, "problems": one["problems"], "average": one[f"avg@{k}"]} | {
            "pass": one[f"pass@{k}"]["mean"],
            "majority": one[f"maj@{k}"]["mean"],
            "length": one["length"] and one["length"]["mean"],
            "cut_off": one["cut_off"],
        }
    return kept


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    try:
        yield from pd.read_parquet(path).to_dict("records")
    except Exception as error:  # of many kinds, since a damaged file may say anything
        raise UserError(f"{path}: not the responses of an evaluation: {error}") from error


def _problem(key: tuple[str, str], problem: Mapping[str, Any], cap: int) -> dict[str, Any]:
    """A problem in all evaluations; cap 0: without question beyond its beginning, and without responses."""
    row = problem["row"]
    question = row["prompt"][0]["content"]
    return {
        "benchmark": key[0],
        "id": key[1],
        "question": short(question, 4000 if cap else 100),
        "answers": [short(str(answer)) for answer in row["reward_model"]["ground_truth"]] if cap else [],
        "runs": [None if one is None else _responses(one, cap) for one in problem["runs"]],
    }


def _responses(row: Mapping[str, Any], cap: int) -> dict[str, Any]:
    correct = [bool(right) for right in row["correct"]]
    chosen = sorted([i for kind in (True, False) for i in [i for i, c in enumerate(correct) if c is kind][:PER_KIND]])
    shown = [_response(row, i, cap) for i in chosen] if cap else []
    return {"right": "".join("01"[right] for right in correct), "responses": shown}


def _response(row: Mapping[str, Any], i: int, cap: int) -> dict[str, Any]:
    text, length = row["responses"][i], row["lengths"][i]
    end = text.rfind(THINK_END) + len(THINK_END) if THINK_END in text else 0
    box = final_box(text, require_think=False)
    return {
        "sample": i,
        "reward": float(row["correct"][i]),
        "reason": str(row["reasons"][i]),
        "finish": row["finish_reasons"][i],
        "tokens": None if length is None or pd.isna(length) else int(length),
        "answer": short(box) if type(box) is str else None,
        "thoughts": _cut_text(text[:end], cap),
        "final": _cut_text(text[end:], cap),
    }


def _cut_text(text: str, cap: int) -> dict[str, Any]:
    """Like `parts.cut` for characters, in two pieces at most."""
    if len(text) <= cap:
        return {"pieces": [text] if text else [], "cut": 1, "left_out": 0}
    half = cap // 2
    return {"pieces": [text[:half], text[-half:]], "cut": 1, "left_out": len(text) - 2 * half}
