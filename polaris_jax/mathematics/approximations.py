"""An approximation appended to an exact value is dropped: the value is what was written before it."""

import re

from polaris_jax.mathematics.tokens import Token

APPROXIMATELY = re.compile(
    r"[\s(,]*(?:(?:or|which is|that is|i\.e\.)\s+)?(?:approximately|approx\.?|about|roughly)[\s:]*$", re.I
)
_ITEM_ENDS = frozenset(["sep", "row", "close", "end", "col"])
_VALUE_ENDS = frozenset(["num", "sym", "const", "close", "text"])


def without_approximations(tokens: list[Token]) -> list[Token]:
    r"""Tokens without `\approx 0.33` behind a value, in brackets or not; in front of a value only the sign goes."""
    kept: list[Token] = []
    at = 0
    while at < len(tokens):
        if not _says_approximately(tokens[at]):
            kept.append(tokens[at])
            at += 1
        elif not kept or kept[-1].kind in ("sep", "row"):
            at += 1
        else:
            aside = _is_aside(kept)
            in_prose = "(" in tokens[at].text
            at = _item_end(tokens, at + 1)
            if aside:
                kept.pop()
            if (aside or in_prose) and at < len(tokens) and tokens[at].kind == "close":
                at += 1
    return kept


def _says_approximately(token: Token) -> bool:
    if token.kind == "rel":
        return token.text == "~"
    return token.kind == "text" and bool(APPROXIMATELY.match(token.text))


def _is_aside(kept: list[Token]) -> bool:
    """Whether a bracket has just opened behind a value."""
    return len(kept) > 1 and kept[-1].kind == "open" and kept[-2].kind in _VALUE_ENDS


def _item_end(tokens: list[Token], at: int) -> int:
    depth = 0
    while at < len(tokens):
        kind = tokens[at].kind
        if depth == 0 and kind in _ITEM_ENDS:
            return at
        depth += {"open": 1, "close": -1}.get(kind, 0)
        at += 1
    return at
