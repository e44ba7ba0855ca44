"""Which responses to a problem gave the same answer, for the majority's vote."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from polaris_jax.evaluation.records import Record
from polaris_jax.evaluation.scores import NO_ANSWER
from polaris_jax.rewards import Reason, VerifierPool
from polaris_jax.rewards.answers import final_box
from polaris_jax.types import Problem

_WITHOUT_ANSWER = (Reason.NO_BOX, Reason.NO_THINK_END)
_READABLE = (Reason.EQUAL, Reason.UNEQUAL)


def answer_groups(problems: Sequence[Problem], rows: Sequence[Sequence[Record]], verifier: VerifierPool) -> np.ndarray:
    """Numbers equal answers to a problem alike: int [P, K], NO_ANSWER where a response has none.

    rows: K records for each of the P problems. The answer is what the verifier extracts. Two are equal when they read
    the same but for dollar signs and the length of white space, when both equal the one ground truth, or when the
    verifier takes one for the other. A right and a wrong answer are never equal; one that the verifier could not read
    equals its like.
    """
    groups_PK = np.full((len(rows), len(rows[0])), NO_ANSWER)
    compared = []
    for problem, row in zip(problems, rows, strict=True):
        boxes = [_box(record) for record in row]
        firsts = {box: sample for sample, box in reversed(list(enumerate(boxes))) if box is not None}
        one_truth = len(problem.answers) == 1
        numeric = verifier if problem.kind == "math" else None  # answers of other kinds are equal where they read so
        compared.append((boxes, firsts, _compare(row, sorted(firsts.values()), boxes, one_truth, numeric)))
    for groups_K, (boxes, firsts, equal) in zip(groups_PK, compared, strict=True):
        leaders: dict[int, int] = {}  # the first sample that gave an equal answer, for each first sample of a box
        for sample in sorted(firsts.values()):
            same = (other for other in leaders if leaders[other] == other and _holds(equal.get((other, sample))))
            leaders[sample] = next(same, sample)
        groups_K[:] = [NO_ANSWER if box is None else leaders[firsts[box]] for box in boxes]
    return groups_PK


def _box(record: Record) -> str | None:
    if record.reason in _WITHOUT_ANSWER:
        return None
    return " ".join(str(final_box(record.response, require_think=False)).replace("$", " ").split())


def _compare(
    row: Sequence[Record], samples: list[int], boxes: list[str | None], one_truth: bool, verifier: VerifierPool | None
) -> dict[tuple[int, int], Future | bool]:
    """Whether the boxes of two samples, the earlier first, are equal; pairs that are not there are unequal."""
    equal: dict[tuple[int, int], Future | bool] = {}
    for position, second in enumerate(samples):
        for first in samples[:position]:
            if row[first].correct != row[second].correct:
                continue
            if row[first].correct and one_truth:
                equal[first, second] = True
            elif verifier and row[first].reason in _READABLE and row[second].reason in _READABLE:
                equal[first, second] = verifier.submit(f"</think>\\boxed{{{boxes[second]}}}", [boxes[first]])
    return equal


def _holds(equal: Future | bool | None) -> bool:
    return equal.result().correct if isinstance(equal, Future) else bool(equal)
