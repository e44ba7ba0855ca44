"""Ground truths as datasets write them: numbers, texts, lists, lists written into a text, and words for "none here"."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from polaris_jax.data.rows import RowError, checked_text
from polaris_jax.rewards.ground_truths import quoted_texts, says_none
from polaris_jax.rewards.pool import MAX_TEXT

_MOST_WRAPPED = 4  # lists within texts within lists; each level doubles the backslashes of the one before


def parse_answers(value: Any) -> tuple[str, ...]:
    """A ground truth as a tuple of distinct texts: from a text, a number or a (nested) list of either.

    A text that holds a list of quoted texts, as JSON or Python write it, is that list; one that holds a list of
    numbers is one answer, an interval or a point. Texts that say that there is no answer here ("proof", "notfound",
    "N/A", "see solution") are left out. Of a worked solution that ends with "#### 72", as GSM8K's do, 72 is the answer.
    Raises RowError where nothing is left.
    """
    texts = list(dict.fromkeys(filter(None, _texts(value))))
    if not texts:
        raise RowError("answer is empty")
    answers = [text for text in texts if not says_none(text)]
    if not answers:
        raise RowError(f"answer {texts[0]!r} is no answer")
    if (size := sum(map(len, answers))) > MAX_TEXT:
        raise RowError(f"answer has {size:,} characters, the verifier reads {MAX_TEXT:,}")
    return tuple(answers)


def _texts(value: Any) -> Iterator[str]:
    rest = [(value, 0)]  # with how many texts it was unwrapped from
    while rest:
        value, depth = rest.pop()
        if isinstance(value, (list, tuple)):
            rest += [(part, depth) for part in reversed(value)]
            continue
        text = _text(value)
        found = quoted_texts(text) if depth < _MOST_WRAPPED else None
        if found is None:
            yield text
        else:
            rest += [(part, depth + 1) for part in reversed(found)]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RowError(f"answer is {value}")
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = checked_text(value, "answer").strip()
    _, mark, last = text.rpartition("\n#### ")
    return last.strip().replace(",", "") if mark and "\n" not in last else _unboxed(text)


def _unboxed(answer: str) -> str:
    # AReaL-boba's answers are \boxed{...}; a box that closes before the end is part of the answer and stays.
    if not (answer.startswith(r"\boxed{") and answer.endswith("}")):
        return answer
    inner, depth = answer[len(r"\boxed{") : -1], 0
    for character in inner:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return answer
    return inner.strip()
