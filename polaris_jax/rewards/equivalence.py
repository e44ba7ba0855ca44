"""Whether a boxed answer equals a ground truth."""

import re
from fractions import Fraction

from math_verify import parse
from math_verify import verify as math_verify

from polaris_jax.rewards.verdict import Reason


def judge(box: str, golds: list[str]) -> Reason:
    """EQUAL if the box equals any ground truth, else why not. Runs in a worker."""
    return Reason.EQUAL if any(_equal(box, gold) for gold in golds) else Reason.UNEQUAL


def _equal(box: str, gold: str) -> bool:
    box, gold = (re.sub(r"\s+", "", text.replace("$", "")) for text in (box, gold))
    if box == gold:
        return True
    try:
        return Fraction(box) == Fraction(gold)
    except (ValueError, ZeroDivisionError):
        pass
    golds, boxes = (parse(f"${text}$", parsing_timeout=0) for text in (gold, box))
    return bool(math_verify(golds, boxes, timeout_seconds=0))
