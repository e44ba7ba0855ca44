"""Multiple choice as datasets write it: options beside the question, and the right one as a number, letter or text."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from polaris_jax.data.rows import RowError, checked_text
from polaris_jax.rewards.kinds import option_letters

COLUMNS = ("choices", "options")


def options_of(row: dict[str, Any]) -> list[str]:
    """The options of a row, none where it has no such column: a list of texts, or a dict with the list in `text`."""
    value = next((row[column] for column in COLUMNS if row.get(column) is not None), [])
    value = value.get("text", []) if isinstance(value, dict) else value
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > len(ascii_uppercase):
        raise RowError(f"choices are a {type(value).__name__}, expected a list of at most {len(ascii_uppercase)} texts")
    return [checked_text(option, "a choice").strip() for option in value]


def with_options(question: str, options: Sequence[str]) -> str:
    """The question with a line for each option: A. ..., B. ..."""
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question, *lines])


def names_option(answer: Any, options: Sequence[str]) -> bool:
    """Whether `letter_of` finds what the answer names."""
    try:
        return bool(letter_of(answer, options))
    except RowError:
        return False


def letter_of(answer: Any, options: Sequence[str]) -> str:
    """The letters of the right options: given as a number from 0 into `options`, as letters, or as an option's text.

    Raises RowError where it is none of these.
    """
    if isinstance(answer, int | float) and not isinstance(answer, bool) and options:
        if 0 <= answer < len(options) and answer == int(answer):
            return ascii_uppercase[int(answer)]
    elif isinstance(answer, str):
        if answer.strip() in options:
            return ascii_uppercase[options.index(answer.strip())]
        letters = option_letters(answer)
        if letters and (not options or letters <= set(ascii_uppercase[: len(options)])):
            return "".join(sorted(letters))
    raise RowError(f"answer {answer!r} names none of the {len(options)} choices")
