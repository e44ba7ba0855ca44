r"""Kinds of problems: how the answer in a response's final text is read, and what it is compared with.

Each function takes the final text, the problem's ground truths and its metadata. It gives a `Reason` where the text
alone decides, else the request with which a worker is asked. All are linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from polaris_jax.rewards.answers import box_of, judge_integers
from polaris_jax.rewards.verdict import Reason

MAX_TEXT = 20_000  # characters of an answer or of all ground truths; no answer is that long

Question = Reason | list  # a verdict's reason, or a request of `worker.py`

_WRAPPED = re.compile(r"\s*\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}\s*")
_LETTERS = re.compile(r"\(?[A-Z]\)?(?:(?: |,|;|&|and|or)*\(?[A-Z]\)?)* ?\.?")  # of texts with single spaces
_LETTER_AND_TEXT = re.compile(r"\(?([A-Z])[).:] ?\S")
_ANSWER_LINE = re.compile(r"\b(?i:answer)(?: is\b|[\s*]{0,4}:)[\s:*]{0,8}(\(?[A-Z]\)?)(?![A-Za-z])")


def math(final: str, golds: Sequence[str], metadata: str) -> Question:
    """The last box against the ground truths, as mathematics; integers are compared here, all else by a worker."""
    box = _sound_box(final)
    if isinstance(box, Reason):
        return box
    return (judge_integers(box, list(golds)) or ["judge", box, list(golds)]) if golds else Reason.UNPARSABLE


def choice(final: str, golds: Sequence[str], metadata: str) -> Question:
    r"""The letters of the options in the last box, or without a box behind the last "answer is" or "Answer:".

    `\boxed{B}`, `(B)`, `B.`, `\text{B}` and `B) 12 m` are B; `A, C`, `AC` and `A and C` are A and C.
    """
    box = _sound_box(final)
    if box is Reason.NO_BOX and (lines := _ANSWER_LINE.findall(final)):
        box = lines[-1]
    if isinstance(box, Reason):
        return box
    chosen = option_letters(box)
    return Reason.UNPARSABLE if chosen is None else _equal(chosen in map(option_letters, golds))


def exact(final: str, golds: Sequence[str], metadata: str) -> Question:
    r"""The text of the last box, character by character; white space, `\text{}` around it and Unicode's ways to write
    one letter do not count."""
    box = _sound_box(final)
    return box if isinstance(box, Reason) else _equal(_plain(box) in map(_plain, golds))


def reasoning_gym(final: str, golds: Sequence[str], metadata: str) -> Question:
    r"""The last box as the problem's scorer in reasoning-gym takes it; a worker asks that."""
    box = _sound_box(final)
    return box if isinstance(box, Reason) else ["gym", _unwrapped(box).strip(), metadata]


KINDS: dict[str, Callable[[str, Sequence[str], str], Question]] = {
    "math": math,
    "choice": choice,
    "exact": exact,
    "reasoning_gym": reasoning_gym,
}


def option_letters(text: str) -> frozenset[str] | None:
    """The letters of the options that a text names, or None where it is no list of letters."""
    text = " ".join(_unwrapped(text).split())
    text = text.upper() if len(text.strip(" ().")) == 1 else text
    if _LETTERS.fullmatch(text):
        return frozenset(letter for letter in text if letter.isupper())
    named = _LETTER_AND_TEXT.match(text)
    return frozenset(named[1]) if named else None


def _sound_box(final: str) -> str | Reason:
    box = box_of(final)
    if isinstance(box, Reason):
        return box
    return Reason.UNPARSABLE if not box.strip() or len(box) > MAX_TEXT else box


def _equal(equal: bool) -> Reason:
    return Reason.EQUAL if equal else Reason.UNEQUAL


def _unwrapped(text: str) -> str:
    wrapped = _WRAPPED.fullmatch(text)
    return wrapped[1] if wrapped else text


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", _unwrapped(text)).split())
