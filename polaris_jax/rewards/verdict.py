"""What the verifier says about one response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple


class Reason(StrEnum):
    """Why a response is right or wrong; training counts them as metrics."""

    NO_THINK_END = "no_think_end"  # the response never closes its thinking
    NO_BOX = "no_box"  # no complete \boxed{...} after the thinking
    UNPARSABLE = "unparsable"  # the box, or every ground truth, is not an answer that can be read
    UNEQUAL = "unequal"
    EQUAL = "equal"
    TIMED_OUT = "timed_out"
    OVER_MEMORY = "over_memory"
    WORKER_DIED = "worker_died"  # twice on this case


class Score(NamedTuple):
    """What a reward function gave a response. error: why it gave nothing, in which case `value` is 0; else ""."""

    value: float
    error: str = ""


@dataclass(frozen=True)
class Verdict:
    """What is known of a response.

    correct: whether its answer is right. reason: why; EQUAL exactly when `correct` is true.
    partial: what a wrong answer is worth all the same, below 1, where a scorer of reasoning-gym says so.
    scores: of the reward functions that were asked for, in their order.
    """

    correct: bool
    reason: Reason
    partial: float = 0.0
    scores: tuple[Score, ...] = ()

    @property
    def reward(self) -> float:
        """The reward of the answer alone, in [0, 1]."""
        return 1.0 if self.correct else self.partial


def from_json(row: Mapping[str, Any]) -> Verdict:
    """The verdict whose `asdict` went through JSON; other keys are left aside."""
    scores = tuple(Score(*score) for score in row["scores"])
    return Verdict(row["correct"], Reason(row["reason"]), row["partial"], scores)
