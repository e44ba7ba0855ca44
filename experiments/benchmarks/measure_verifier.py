"""How often a verifier is right, and how fast it is, on cases with known verdicts."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import math_verify as peer
import numpy as np

from polaris_jax.errors import UserError
from polaris_jax.rewards.answers import alternatives, final_box
from polaris_jax.rewards.pool import VerifierPool
from polaris_jax.rewards.verdict import Reason

Case = dict[str, Any]


def read_cases(path: str | Path) -> list[Case]:
    """Rows of a jsonl file with `response`, `answer` and `correct`. Raises UserError naming the line."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; --cases takes a jsonl file")
    cases = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        case = json.loads(line)
        missing = {"response", "answer", "correct"} - case.keys()
        if missing:
            raise UserError(f"{path} line {number}: no {', '.join(sorted(missing))}")
        cases.append(case)
    if not cases:
        raise UserError(f"{path}: no cases")
    return cases


def ours(cases: list[Case], workers: int) -> dict[str, float]:
    """This package's figures: each case alone through the pool for the milliseconds, all at once for the rate."""
    with VerifierPool(workers) as pool:
        for future in [pool.submit("</think>\\boxed{1/2}", "0.5") for _ in range(4 * workers)]:
            future.result()  # the workers are up
        result = _one_by_one(cases, lambda case: pool.submit(case["response"], case["answer"]).result().correct)
        began = time.perf_counter()
        for future in [pool.submit(case["response"], case["answer"]) for case in cases]:
            future.result()
        seconds = time.perf_counter() - began
    return result | {"cases_per_second_per_worker": len(cases) / seconds / workers}


def right_by_kind(cases: list[Case], workers: int) -> dict[str, str]:
    """How many of each kind's cases (`kind`, where a case names it) this package judges rightly, as "3 of 4"."""
    with VerifierPool(workers) as pool:
        futures = [pool.submit(case["response"], case["answer"]) for case in cases]
        right = [future.result().correct == bool(case["correct"]) for future, case in zip(futures, cases, strict=True)]
    kinds = [case.get("kind", "cases") for case in cases]
    found = {kind: [ok for name, ok in zip(kinds, right, strict=True) if name == kind] for kind in kinds}
    return {kind: f"{sum(verdicts)} of {len(verdicts)}" for kind, verdicts in found.items()}


def math_verify(cases: list[Case]) -> dict[str, float]:
    """math-verify's figures, in this process, fed the last box after `</think>` as this package finds it."""

    def verdict(case: Case) -> bool:
        box = final_box(case["response"])
        if isinstance(box, Reason):
            return False
        parsed = peer.parse(f"${box}$")
        return any(peer.verify(peer.parse(f"${gold}$"), parsed) for gold in alternatives(case["answer"]))

    verdict({"response": "</think>\\boxed{\\frac{1}{2}}", "answer": "0.5"})  # its caches are warm
    result = _one_by_one(cases, verdict)
    return result | {"cases_per_second_per_worker": 1000 / result["mean_ms"]}


def _one_by_one(cases: list[Case], verdict: Callable[[Case], bool]) -> dict[str, float]:
    verdicts, milliseconds = [], []
    for case in cases:
        began = time.perf_counter()
        verdicts.append(verdict(case))
        milliseconds.append(1000 * (time.perf_counter() - began))
    found, truth = np.array(verdicts), np.array([bool(case["correct"]) for case in cases])
    return {
        "accuracy": float(np.mean(found == truth)),
        "false_positives": int(np.sum(found & ~truth)),
        "false_negatives": int(np.sum(~found & truth)),
        "median_ms": float(np.median(milliseconds)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "mean_ms": float(np.mean(milliseconds)),
    }
