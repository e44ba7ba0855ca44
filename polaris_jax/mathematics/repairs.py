"""What keyboards and datasets do to LaTeX, undone: doubled backslashes, lost spaces, exponents of units."""

import re

from polaris_jax.mathematics import symbols

_BACKSLASHES = re.compile(r"\\+")
_AFTER_TWO = re.compile(r"(?<!\\)\\\\([A-Za-z]+|[{}%$,;!:])")
_KNOWN = symbols.COMMANDS.keys() | symbols.IGNORED | symbols.FONTS | symbols.TEXTS | frozenset(["begin", "mathbb"])
_NAME = r"(?:[A-Za-z]|\\[a-z]+ ?)(?:_\{?\w+\}?|'|\([A-Za-z]\))*"
_GLUED_WORD = re.compile(
    rf"(?:(?<=[0-9)}}\],;])|(?<=(?<![A-Za-z\\])[a-eg-zA-Z]))(or|and)(?={_NAME}\s*(?:[=<>]|\\(?:[lg]e|ne)|\\in(?![a-z])))"
)
_SQUARE_METRES = re.compile(r"(?<=[0-9])\s?m([²³])")
_GLUED_COMMANDS = sorted(
    ["quad", "qquad", "cdot", "times", "leq", "geq", "infty", "pm", "mp", *symbols.GREEK], key=len, reverse=True
)
_REST = re.compile(r"[A-Za-z]|or|and")


def with_single_backslashes(text: str) -> str:
    r"""The text with \\frac{1}{2} as \frac{1}{2}, where every backslash is doubled and not for rows alone."""
    if "\\\\" not in text or any(len(run) % 2 for run in _BACKSLASHES.findall(text)):
        return text
    doubled = any(name in _KNOWN or not name.isalpha() for name in _AFTER_TWO.findall(text))
    return text.replace("\\\\", "\\") if doubled else text


def with_lost_spaces(text: str) -> str:
    """The text with spaces around the word in x=1orx=2, and with m² behind a number as the unit that it is."""
    if "²" in text or "³" in text:
        text = _SQUARE_METRES.sub(lambda match: f"\\text{{ m^{2 if match.group(1) == '²' else 3}}}", text)
    if "quad" in text:
        text = re.sub(r"\\(q?quad)(or|and)(?=[A-Za-z\\])", r"\\\1 \2 ", text)
    return _GLUED_WORD.sub(r" \1 ", text) if "or" in text or "and" in text else text


def known_part(command: str) -> str:
    r"""The known command that an unknown one such as \quadx or \pir begins with, where a space was lost; else ""."""
    return next(
        (name for name in _GLUED_COMMANDS if command.startswith(name) and _REST.fullmatch(command[len(name) :])), ""
    )
