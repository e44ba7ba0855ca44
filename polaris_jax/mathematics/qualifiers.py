r"""What an answer says about its parameter, as in x = \frac{\pi}{4} + k\pi, k \in \mathbb{Z}."""

import itertools
import re
from collections.abc import Iterator
from fractions import Fraction

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.words import plain

MAX_TAIL = 160  # characters of a qualifier
MAX_NAMES = 3
_HINTS = ("in", "natural", "whole", "real", "=0,", "= 0")  # ... integers, k \in Z
_START = re.compile(
    r"(?:[,;]\s*)?(?:\\text|\\mbox|\\textrm|\\mathrm|\\q?quad|\\left|\()|[,;]|\\[,;: ]|\\forall|\b(?:where|with|for)\b"
)
_SET = r"(?:\\mathbb\s*|\\Bbb\s*|\\)?([ZNQR])\s*((?:\^|_)?\s*(?:\*|\+|0|\\ast|\\star|>\s*0|\\geq?\s*[01]))?"
_WORDS = (
    r"((?:(?:positive|negative|non-?\s?negative|non-?\s?zero|natural|whole|real|rational|even|odd)\s+)?"
    r"(?:integers?|numbers?)|naturals?|reals?)"
)
_NAMES = r"([A-Za-z](?:\s*(?:,|and)\s*[A-Za-z])*)"
_ARTICLES = r"(?:(?:an?|any|all|every|each|some|arbitrary|the|set|of)\s+)*"
_QUALIFIER = re.compile(
    rf"[\s,;(]*(?:(?:where|with|for|and|here)\s+)?(?:\\forall\s*)?{_ARTICLES}(?:{_WORDS}\s+{_NAMES}|"
    rf"{_NAMES}\s*(?:\\in|\bin\b|\bis\b|\bare\b|\bbe\b)\s*{_ARTICLES}(?:{_SET}|{_WORDS})|{_NAMES}\s+{_WORDS}|"
    rf"{_NAMES}\s*=\s*0(?:\s*,\s*\\pm\s*[123])+\s*,?\s*(?:\\[lc]?dots)?)[\s).]*"
)
_DOMAINS = {
    "integer": "Z",
    "number": "",
    "natural": "N",
    "natural number": "N",
    "whole number": "N",
    "positive integer": "Z+",
    "nonnegative integer": "N0",
    "real": "R",
    "real number": "R",
    "rational number": "Q",
}
_MARKED = {"Z": "Z+", "N": "Z+"}
_NATURAL = frozenset(["N", "N0", "Z+"])
_USUAL_PARAMETERS = frozenset("ijklmnpqrstKLMNT")
_SHIFTS = [(sign, shift) for sign in (1, -1) for shift in (0, 1, -1, 2, -2)]


def split(text: str) -> tuple[str, tuple[str, ...], str] | None:
    r"""An answer's text without what it says about its parameters at its end, their names and their domain; or None."""
    if not any(hint in text for hint in _HINTS):
        return None
    for start in _START.finditer(text, max(0, len(text) - MAX_TAIL)):
        match = _QUALIFIER.fullmatch(" " + plain(text[start.start() :]))
        if match and text[: start.start()].strip() and (domain := _domain(match)):
            names = next(filter(None, match.group(2, 3, 7, 9)))
            letters = tuple(re.findall(r"[A-Za-z]", re.sub(r"\band\b", ",", names)))
            return (text[: start.start()], letters, domain) if len(letters) <= MAX_NAMES else None
    return None


def _domain(match: re.Match) -> str:
    words = next(filter(None, match.group(1, 6, 8)), None)
    if words is None:
        letter, mark = match.group(4) or "Z", match.group(5)  # k = 0, ±1, ±2, ... names none
        if not mark:
            return letter
        return "N0" if letter in "NZ" and "0" in mark and ">" not in mark else _MARKED.get(letter, letter + "*")
    return _DOMAINS.get(re.sub(r"non[-\s]", "non", re.sub(r"s$", "", " ".join(words.split()))), "")


def is_about(body: n.Node, name: str) -> bool:
    """Whether the answer is a condition on this name, as in n > 3, so that the name is no parameter."""
    return any(
        n.Sym(name) in part.sides[: 1 if part.ops == ("=",) else None]
        and not any(isinstance(side, n.Sym) and side.name != name for side in part.sides)
        for part in n.walk(body)
        if isinstance(part, n.Relation)
    )


def from_builder(node: n.Node) -> n.Node:
    r"""\{x \mid x = k\pi, k \in Z\} and \{k\pi \mid k \in Z\} as x = k\pi, k \in Z; any other tree as it is."""
    if not isinstance(node, n.Builder):
        return node
    conditions = node.condition.items if isinstance(node.condition, n.Seq) else (node.condition,)
    members = [one for one in conditions if _is_membership(one)]
    rest = [one for one in conditions if one not in members]
    head = node.head.sides[0] if isinstance(node.head, n.Relation) and node.head.ops == ("in",) else node.head
    body = rest[0] if len(rest) == 1 and isinstance(head, n.Sym) else head if not rest else None
    if len(members) != 1 or body is None or (rest and not _is_value_of(rest[0], head)):
        return node
    name, domain = members[0].sides[0].name, members[0].sides[1].name
    bound = name != getattr(head, "name", None) and name in n.free_symbols(body)
    return n.Qualified(body, (name,), domain) if bound else node


def _is_membership(node: n.Node) -> bool:
    if not isinstance(node, n.Relation) or node.ops != ("in",):
        return False
    return isinstance(node.sides[0], n.Sym) and getattr(node.sides[1], "name", "") in ("Z", "N")


def _is_value_of(node: n.Node, head: n.Node) -> bool:
    return isinstance(node, n.Relation) and node.ops == ("=",) and node.sides[0] == head


def bodies(gold: n.Node, box: n.Node) -> Iterator[tuple[n.Node, n.Node]]:
    """Pairs of answers without qualifiers, any of which being the same makes the two the same.

    Where only one side qualifies its parameters, the other's are taken to mean the same. Parameters may have other
    letters; an integer may run the other way or start elsewhere.
    """
    if isinstance(gold, n.Qualified) and isinstance(box, n.Qualified) and not _same_domain(gold.domain, box.domain):
        return
    gold_body, box_body = (node.body if isinstance(node, n.Qualified) else node for node in (gold, box))
    for golds, boxes in _namings(gold, box):
        renamed = _with_names(box_body, dict(zip(boxes, map(n.Sym, golds), strict=True)))
        integers = len(golds) == 1 and {node.domain for node in (gold, box) if isinstance(node, n.Qualified)} == {"Z"}
        for sign, shift in _SHIFTS if integers else _SHIFTS[:1]:
            yield gold_body, _moved(renamed, golds[0], sign, shift)


def _same_domain(a: str, b: str) -> bool:
    return a == b or ("N" in (a, b) and {a, b} <= _NATURAL)


def _namings(gold: n.Node, box: n.Node) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Names of the gold's parameters, and of the box's in the same order."""
    if isinstance(gold, n.Qualified) and isinstance(box, n.Qualified):
        if len(gold.names) == len(box.names):
            yield from ((gold.names, order) for order in itertools.permutations(box.names))
        return
    known, other = (gold, box) if isinstance(gold, n.Qualified) else (box, gold)
    free = n.free_symbols(other)
    found = [known.names] if set(known.names) <= free else []
    if not found and not set(known.names) & free:
        new = sorted((free - n.free_symbols(known.body)) & _USUAL_PARAMETERS)
        found = list(itertools.permutations(new)) if len(new) == len(known.names) else []
    for names in found:
        yield (known.names, names) if known is gold else (names, known.names)


def _with_names(node: n.Node, names: dict[str, n.Sym]) -> n.Node:
    """The node with parameters renamed, in indices too: a_k for a_n. Letters in use elsewhere are not taken."""
    free = n.free_symbols(node)
    if any(new.name in free and new.name not in names for new in names.values()):
        return node
    indexed = {
        f"{base}_{index}": n.Sym(f"{base}_{names[index].name}")
        for base, _, index in (name.partition("_") for name in free)
        if index in names
    }
    return n.substitute(node, indexed | names)


def _moved(node: n.Node, name: str, sign: int, shift: int) -> n.Node:
    if (sign, shift) == (1, 0):
        return node
    parameter = n.Sym(name) if sign > 0 else n.Call("neg", (n.Sym(name),))
    return n.substitute(node, {name: n.Call("add", (parameter, n.Num(Fraction(shift))))})
