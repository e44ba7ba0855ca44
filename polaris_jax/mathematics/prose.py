"""Words around an answer, and answers that a few words name."""

import re

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.symbols import listed

_INFINITY, _EMPTY, _REALS = n.Const("inf"), n.Const("empty"), n.Const("R")
_NAMED = {
    "infinity": _INFINITY,
    "positive infinity": _INFINITY,
    "negative infinity": n.Call("neg", (_INFINITY,)),
    "all real numbers": _REALS,
    "all reals": _REALS,
    "real numbers": _REALS,
    "the set of all real numbers": _REALS,
    "empty set": _EMPTY,
    "the empty set": _EMPTY,
    "no solution": _EMPTY,
    "no solutions": _EMPTY,
    "no real solution": _EMPTY,
    "no real solutions": _EMPTY,
}
_PREFIX_WORDS = frozenset(
    listed(
        "the final answer answers is are so therefore thus hence we get have value values solution solutions "
        "length area result equals equal to of and usd eur rs"
    )
)


def without_reversed_brackets(text: str) -> str:
    """]0,1[ in the usual notation, (0,1)."""
    match = re.fullmatch(r"([\[\]])([^\[\]()]+,[^\[\]()]+)([\[\]])", text)
    if not match or match.group(1, 3) == ("[", "]"):
        return text
    left, ends, right = match.groups()
    return f"{'[' if left == '[' else '('}{ends}{']' if right == ']' else ')'}"


def trim(text: str) -> str:
    """Without dollar signs around formulas, Markdown bold, and the full stop of a sentence."""
    text = re.sub(r"(?<!\\)\$+", r"\\: ", text)
    text = re.sub(r"^(?:\s|\*\*|`|\\[:;,! ]|\\quad|\\qquad)+", "", text)
    return re.sub(r"(?:\s|\*\*|`|\\[:;,! ](?<!\\\\[:;,! ])|~|[.,;:]|(?<!\\)\\)+$", "", text)


def named_by_words(prose: str) -> n.Node:
    """What a few words name, such as infinity; any other prose is Words."""
    return _NAMED.get(" ".join(prose.lower().split()).strip(" .,"), n.Words(prose))


def is_prefix(prose: str) -> bool:
    """Words that announce an answer and say nothing about it."""
    words = re.findall(r"[^\W_]+", prose.lower())
    return all(word in _PREFIX_WORDS for word in words)
