"""What letters without any markup, or in an upright font, stand for: names, units, prose or symbols."""

import itertools

from polaris_jax.mathematics import symbols
from polaris_jax.mathematics.units import is_unit_word


def letter_tokens(run: str, after_number: bool) -> list[tuple[str, str]]:
    """Tokens of letters written without any command: known names, units, prose, else one symbol per letter."""
    if run in symbols.BARE_NAMES:
        return [symbols.BARE_NAMES[run]]
    if len(run) == 1:
        return [symbols.letter(run)]
    if run.lower() in symbols.SEPARATOR_WORDS:
        return [("sep", run.lower())]
    if after_number and is_unit_word(run):
        return [("text", run)]
    if run.lower() in symbols.SHORT_WORDS or _is_prose(run):
        return [("text", run)]
    if len(run) >= 3 and run.isupper():
        return [("sym", run)]
    prefixed = _leading_name(run)
    return prefixed or [symbols.letter(char) for char in run]


def _leading_name(run: str) -> list[tuple[str, str]]:
    """Plain ASCII such as xsqrt or pir: a known name of at least two letters at the start or the end."""
    for name in ("sqrt", "pi", "sin", "cos", "tan", "log", "ln"):
        if run.endswith(name) or (run.startswith(name) and name == "pi"):
            head, tail = (run[: -len(name)], name) if run.endswith(name) else (name, run[len(name) :])
            return letter_tokens(head, False) + letter_tokens(tail, False)
    return []


def _is_prose(run: str) -> bool:
    ascending = all(a < b for a, b in itertools.pairwise(run))
    return (len(run) >= 4 and not run.isupper() and not ascending) or (is_unit_word(run) and len(run) >= 3)


def upright_tokens(word: str) -> list[tuple[str, str]]:
    r"""Tokens of a word in \mathrm and the like: a known name, a unit or prose, else one symbol."""
    if word in symbols.BARE_NAMES:
        return [symbols.BARE_NAMES[word]]
    if word.lower() in symbols.SEPARATOR_WORDS:
        return [("sep", word.lower())]
    if is_unit_word(word) or (len(word) >= 3 and not word.isupper()):
        return [("text", word)]
    return [("sym", word)] if len(word) > 2 else [symbols.letter(char) for char in word]
