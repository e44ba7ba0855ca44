"""Sets of real numbers: intervals, their unions and complements, inequalities and set-builder forms."""

from dataclasses import dataclass, replace
from functools import cmp_to_key

from mpmath import mp, mpc

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.arithmetic import NotANumber, TooLarge
from polaris_jax.mathematics.numeric import approximate, same_value


class NoRealSet(Exception):
    """The tree is no set of real numbers, or one whose ends are not known."""


@dataclass(frozen=True)
class End:
    """One end of an interval: `node` is None at infinity; `approximate` orders the ends."""

    approximate: float
    node: n.Node | None
    closed: bool


@dataclass(frozen=True)
class Interval:
    low: End
    high: End


MINUS_INFINITY = End(-mp.inf, None, False)
PLUS_INFINITY = End(mp.inf, None, False)
REALS = (Interval(MINUS_INFINITY, PLUS_INFINITY),)
RealSet = tuple[Interval, ...]  # disjoint, ascending
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}
INEQUALITIES = frozenset(["<", ">", "<=", ">=", "!="])
POSITIVE = n.Relation((">",), (n.Sym("x"), n.ZERO))


def same_set(a: RealSet, b: RealSet) -> bool:
    """Whether two sets of intervals are equal, ends included."""
    return len(a) == len(b) and all(
        _same_end(p.low, q.low)
        and _same_end(p.high, q.high)
        and (p.low.closed, p.high.closed) == (q.low.closed, q.high.closed)
        for p, q in zip(a, b, strict=True)
    )


def _same_end(a: End, b: End) -> bool:
    if a.node is None or b.node is None:
        return a.node is b.node and a.approximate == b.approximate
    return a.approximate == b.approximate or same_value(a.node, b.node)


def real_set(node: n.Node) -> RealSet:
    """The set that a tree means. Raises NoRealSet."""
    match node:
        case n.Const("empty"):
            return ()
        case n.Const("R"):
            return REALS
        case n.Const("R+"):
            return solutions(POSITIVE)
        case n.Seq(items, left, right) if left in ("(", "[") and right in (")", "]") and len(items) == 2:
            return _interval(*items, left == "[", right == "]")
        case n.Seq(items, "set", _):
            return union(*((Interval(point, point),) for point in map(_closed_end, items)))
        case n.Seq(items, "", _):
            return _joined(node)
        case n.SetOp("union", left, right):
            return union(real_set(left), real_set(right))
        case n.SetOp("intersection", left, right):
            return intersection(real_set(left), real_set(right))
        case n.SetOp("minus", left, right):
            return intersection(real_set(left), complement(real_set(right)))
        case n.Builder(head, condition):
            return _built(head, condition)
        case n.Relation():
            return solutions(node)
    raise NoRealSet


def _joined(node: n.Seq) -> RealSet:
    """Conditions or intervals in a row: `or` unites them; a comma between conditions means both, where that can be."""
    parts = [real_set(item) for item in node.items]
    conditions = all(isinstance(item, n.Relation) for item in node.items)
    if node.separator in ("or", ";") or not conditions:
        return union(*parts)
    both = REALS
    for part in parts:
        both = intersection(both, part)
    return both or union(*parts)


def _built(head: n.Node, condition: n.Node) -> RealSet:
    name, domain = _variable(head), REALS
    if isinstance(head, n.Relation):
        domain = real_set(head.sides[1])
    for part in condition.items if isinstance(condition, n.Seq) and not condition.left else (condition,):
        if variable(part) not in (name, None):
            raise NoRealSet
    return intersection(domain, real_set(condition))


def _variable(head: n.Node) -> str:
    if isinstance(head, n.Relation) and head.ops == ("in",):
        head = head.sides[0]
    if not isinstance(head, n.Sym):
        raise NoRealSet
    return head.name


def variable(node: n.Node) -> str | None:
    """The one name that inequalities and memberships are about, or None."""
    sides = [side for part in n.walk(node) if isinstance(part, n.Relation) for side in part.sides]
    names = {name for side in sides if isinstance(side, n.Sym) or _is_size(side) for name in n.free_symbols(side)}
    return names.pop() if len(names) == 1 else None


def solutions(node: n.Relation) -> RealSet:
    """Where a chain such as -2 <= x < 7, or x != 1, or x in (1, 2) holds; the variable must stand alone."""
    if node.ops == ("in",) and isinstance(node.sides[0], n.Sym):
        return real_set(node.sides[1])
    places = [i for i, side in enumerate(node.sides) if isinstance(side, n.Sym) or _is_size(side)]
    if len(places) != 1 or not set(node.ops) <= INEQUALITIES | {"="} or len(node.ops) > 2:
        raise NoRealSet
    place, result = places[0], REALS
    if place > 0:
        result = intersection(result, _half(_FLIPPED[node.ops[place - 1]], node.sides[place - 1]))
    if place < len(node.ops):
        result = intersection(result, _half(node.ops[place], node.sides[place + 1]))
    if len(node.ops) == 2 and place != 1:
        raise NoRealSet
    side = node.sides[place]
    return _of_size(side.args[0], result) if _is_size(side) else result


def _is_size(side: n.Node) -> bool:
    """|x|, |2x-1| and the like."""
    return isinstance(side, n.Call) and side.name == "abs" and len(n.free_symbols(side)) == 1


def _of_size(inner: n.Node, sizes: RealSet) -> RealSet:
    """Where |ax + b| is one of the sizes."""
    (name,) = n.free_symbols(inner)
    start, end = (n.substitute(inner, {name: point}) for point in (n.ZERO, n.ONE))
    slope = n.Call("add", (end, n.Call("neg", (start,))))
    line = n.Call("add", (n.Call("mul", (slope, n.Sym(name))), start))
    try:
        if not same_value(inner, line):
            raise NoRealSet
    except (NotANumber, TooLarge) as error:
        raise NoRealSet from error
    positive = intersection(sizes, solutions(n.Relation((">=",), (n.Sym(name), n.ZERO))))
    return union(*(_scaled(positive, start, slope, sign) for sign in (1, -1)))


def _scaled(values: RealSet, start: n.Node, slope: n.Node, sign: int) -> RealSet:
    """The x at which slope * x + start is sign times one of the values."""

    def moved(end: End) -> End:
        if end.node is None:
            return MINUS_INFINITY if falling else PLUS_INFINITY
        value = end.node if sign > 0 else n.Call("neg", (end.node,))
        return _end(n.Call("div", (n.Call("add", (value, n.Call("neg", (start,)))), slope)), end.closed)

    falling = (approximate(slope) > 0) != (sign > 0)
    ends = [(moved(part.low), moved(part.high)) for part in values]
    return union(*((Interval(high, low) if falling else Interval(low, high),) for low, high in ends))


def _half(op: str, bound: n.Node) -> RealSet:
    """The set x op bound."""
    if op in ("=", "!="):
        point = _closed_end(bound)
        return (Interval(point, point),) if op == "=" else complement((Interval(point, point),))
    end = _end(bound, op.endswith("="))
    return _nonempty(Interval(MINUS_INFINITY, end) if op.startswith("<") else Interval(end, PLUS_INFINITY))


def _interval(low: n.Node, high: n.Node, low_closed: bool, high_closed: bool) -> RealSet:
    ends = _end(low, low_closed), _end(high, high_closed)
    if (
        ends[0].approximate >= ends[1].approximate
        or (low_closed and not ends[0].node)
        or (high_closed and not ends[1].node)
    ):
        raise NoRealSet  # backwards, empty, or said to reach infinity
    return _nonempty(Interval(*ends))


def _nonempty(interval: Interval) -> RealSet:
    low, high = interval.low, interval.high
    if low.approximate < high.approximate:
        return (interval,)
    if low.approximate == high.approximate and low.closed and high.closed:
        return (interval,)
    return ()


def infinity(node: n.Node) -> int:
    """1 or -1 for plus or minus infinity, else 0."""
    if node == n.Const("inf"):
        return 1
    if isinstance(node, n.Call) and node.name == "neg":
        return -infinity(node.args[0])
    return 0


def _end(node: n.Node, closed: bool) -> End:
    sign = infinity(node)
    if sign:
        return PLUS_INFINITY if sign > 0 else MINUS_INFINITY
    if isinstance(node, (n.Degree, n.Quantity)):
        return _end(node.body, closed)
    try:
        value = approximate(node)
    except (NotANumber, TooLarge) as error:
        raise NoRealSet from error
    if isinstance(value, mpc):
        raise NoRealSet
    return End(mp.mpf(mp.nstr(value, 20)), node, closed)


def _closed_end(node: n.Node) -> End:
    end = _end(node, True)
    if end.node is None:
        raise NoRealSet
    return end


# operations on sets; an end is compared by place, then by which side of the place it lies on


def _compare_low(a: End, b: End) -> int:
    if a.approximate != b.approximate:
        return -1 if a.approximate < b.approximate else 1
    return b.closed - a.closed


def _compare_high(a: End, b: End) -> int:
    if a.approximate != b.approximate:
        return -1 if a.approximate < b.approximate else 1
    return a.closed - b.closed


def union(*sets: RealSet) -> RealSet:
    """Everything that is in any of the sets, touching intervals merged."""
    intervals = sorted((part for one in sets for part in one), key=cmp_to_key(lambda p, q: _compare_low(p.low, q.low)))
    merged: list[Interval] = []
    for part in intervals:
        if merged and _touch(merged[-1].high, part.low):
            if _compare_high(part.high, merged[-1].high) > 0:
                merged[-1] = replace(merged[-1], high=part.high)
        else:
            merged.append(part)
    return tuple(merged)


def _touch(high: End, low: End) -> bool:
    if low.approximate != high.approximate:
        return low.approximate < high.approximate
    return low.closed or high.closed


def intersection(a: RealSet, b: RealSet) -> RealSet:
    """Everything that is in both."""
    parts = [
        Interval(
            p.low if _compare_low(p.low, q.low) >= 0 else q.low,
            p.high if _compare_high(p.high, q.high) <= 0 else q.high,
        )
        for p in a
        for q in b
    ]
    return union(*map(_nonempty, parts))


def complement(a: RealSet) -> RealSet:
    """Every real number that is not in the set."""
    result, low = [], MINUS_INFINITY
    for part in a:
        result.extend(_nonempty(Interval(low, replace(part.low, closed=not part.low.closed))))
        low = replace(part.high, closed=not part.high.closed)
    if low.node is not None or not a:
        result.extend(_nonempty(Interval(low, PLUS_INFINITY)))
    return tuple(part for part in result if part.high.approximate != -mp.inf)
