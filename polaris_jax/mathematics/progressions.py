"""Lists with dots: 1, 2, ..., n."""

import itertools
from fractions import Fraction

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.arithmetic import NotANumber, TooLarge
from polaris_jax.mathematics.numeric import same_value

DOTS = n.Sym("…")
MAX_ITEMS = 400
Items = tuple[n.Node, ...]


def same_progression(a: Items, b: Items) -> bool | None:
    """Whether two lists, one of them with dots, are the same arithmetic progression; None where neither says so."""
    if DOTS not in a and DOTS not in b:
        return None
    try:
        first, second = _progression(a), _progression(b)
        if first is None or second is None:
            return None
        return all(_same(x, y) for x, y in zip(first, second, strict=True))
    except (NotANumber, TooLarge):
        return False


def _progression(items: Items) -> tuple[n.Node, n.Node, n.Node | None] | None:
    """First term, step and last term (None: endless) of a list in its order of writing."""
    head, last = items, items[-1]
    if DOTS in items:
        place = items.index(DOTS)
        head, tail = items[:place], items[place + 1 :]
        if len(tail) > 1 or DOTS in tail:
            return None
        last = tail[0] if tail else None
    if not 2 <= len(head) <= MAX_ITEMS:
        return None
    step = _minus(head[1], head[0])
    even = all(_same(_minus(after, before), step) for before, after in itertools.pairwise(head[1:]))
    return (head[0], step, last) if even else None


def _minus(a: n.Node, b: n.Node) -> n.Node:
    if isinstance(a, n.Num) and isinstance(b, n.Num):
        return n.Num(Fraction(a.value - b.value))
    return n.Call("add", (a, n.Call("neg", (b,))))


def _same(a: n.Node | None, b: n.Node | None) -> bool:
    if a is None or b is None:
        return a is b
    return same_value(a, b)
