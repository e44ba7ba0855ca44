"""How numbers are written: groups of digits, repeating decimals, decimal commas, marked bases."""

import re
from typing import NamedTuple

_GROUP_MARKS = r"\{,\}|,\s?\\[!,;:]\s*|\{\\,\}|\{\\;\}|\\[,;:]|\\ |~|(?<=[0-9]) (?=[0-9])"
_THOUSANDS = re.compile(rf"(?<![0-9.])[1-9][0-9]{{0,2}}(?:(?:{_GROUP_MARKS})[0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?")
_COMMA_THOUSANDS = re.compile(r"(?<![0-9.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?")
_REPEATING = re.compile(
    r"([0-9]*)\.([0-9]*)(?:\\(?:overline|bar)\s*(?:\{([0-9]+)\}|([0-9]))|\(([0-9]+)\)(?!\s*[\w(\\^]))"
)
_DOTTED = re.compile(r"([0-9]*)\.([0-9]*)\\dot\s*\{?([0-9])\}?(?:([0-9]*)\\dot\s*\{?([0-9])\}?)?")
_DECIMAL_COMMA = re.compile(r"[0-9]+\{,\}[0-9]+")
_NUMBER = re.compile(r"(?:[0-9]+(?:\.(?!\.)[0-9]*)?|\.[0-9]+)(?:(?:[eE][+-]?|\s?[eE]\s?)[0-9]+(?![\w.^]))?")
_HIGH_BASE = re.compile(r"[0-9A-Z]{1,40}_(?:\{(1[1-9]|[23][0-9])\}|(1[1-9]|[23][0-9]))(?![0-9])")


class Numeral(NamedTuple):
    number: str  # digits, a decimal, 1.5e-3, or numerator/denominator
    end: int  # index behind it


def numeral(text: str, at: int, *, comma_groups: bool) -> Numeral | None:
    """The number that stands at this place of the text; `comma_groups` reads 1,234 as one."""
    return _high_base(text, at) or _repeating(text, at) or _grouped(text, at, comma_groups) or _plain(text, at)


def _high_base(text: str, at: int) -> Numeral | None:
    match = _HIGH_BASE.match(text, at)
    if not match:
        return None
    digits, base = match.group().partition("_")[0], int(match.group(1) or match.group(2))
    if digits.isalpha() and (base != 16 or len(digits) < 2):  # a name with a subscript
        return None
    if any(int(digit, 36) >= base for digit in digits):
        return None
    return Numeral(str(int(digits, base)), match.end())


def _repeating(text: str, at: int) -> Numeral | None:
    if match := _REPEATING.match(text, at):
        whole, head, *blocks = match.groups()
        return Numeral(_repeating_fraction(whole, head, next(filter(None, blocks))), match.end())
    if match := _DOTTED.match(text, at):
        whole, head, first, middle, last = match.groups()
        return Numeral(_repeating_fraction(whole, head, first + (middle or "") + (last or "")), match.end())
    return None


def _grouped(text: str, at: int, comma_groups: bool) -> Numeral | None:
    match = _THOUSANDS.match(text, at) or (comma_groups and _COMMA_THOUSANDS.match(text, at))
    if match:
        return Numeral(re.sub(r"[^\d.]", "", match.group()), match.end())
    match = _DECIMAL_COMMA.match(text, at)
    return Numeral(match.group().replace("{,}", "."), match.end()) if match else None


def _plain(text: str, at: int) -> Numeral | None:
    match = _NUMBER.match(text, at)
    return Numeral(re.sub(r"\s", "", match.group()), match.end()) if match else None


def _repeating_fraction(whole: str, head: str, block: str) -> str:
    """Exact value of whole.head(block)(block)... as numerator/denominator."""
    period = 10 ** len(block) - 1
    value = int((whole + head) or "0") * period + int(block)
    return f"{value}/{10 ** len(head) * period}"
