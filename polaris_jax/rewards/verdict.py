"""What the verifier says about one response."""

from dataclasses import dataclass
from enum import StrEnum


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


@dataclass(frozen=True)
class Verdict:
    """`correct` is the reward; `reason` is EQUAL exactly when `correct` is true."""

    correct: bool
    reason: Reason
