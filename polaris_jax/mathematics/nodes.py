"""The tree of an answer: what the reader builds and the comparison takes apart. All nodes are immutable."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Node:
    """Any part of an answer."""


@dataclass(frozen=True)
class Num(Node):
    """An exact number; decimals are exact too. `digits` is what was written, for marked bases."""

    value: Fraction
    digits: str = ""


@dataclass(frozen=True)
class Sym(Node):
    """A free symbol, or any opaque named thing: x, a_{1}, ∠ABC, AB."""

    name: str


@dataclass(frozen=True)
class Const(Node):
    """pi, e, i, inf, or a named set: R, Z, N, Q, C, empty."""

    name: str


@dataclass(frozen=True)
class Call(Node):
    """A known function or operation on numbers; `name` is a key of evaluate.FUNCTIONS."""

    name: str
    args: tuple[Node, ...]


@dataclass(frozen=True)
class Apply(Node):
    """An unknown function, such as f in f(x)."""

    name: str
    args: tuple[Node, ...]


@dataclass(frozen=True)
class Fold(Node):
    r"""A \sum or \prod over `var` from `low` to `high`."""

    kind: str
    var: str
    low: Node
    high: Node
    body: Node


@dataclass(frozen=True)
class Integral(Node):
    """An integral over `var` from `low` to `high`, both None where it is indefinite."""

    var: str
    low: Node | None
    high: Node | None
    body: Node


@dataclass(frozen=True)
class Limit(Node):
    """The limit of `body` as `var` goes to `point`; `side` is "+" or "-" where only one side of the point counts."""

    var: str
    point: Node
    side: str
    body: Node


@dataclass(frozen=True)
class Derivative(Node):
    """`body` differentiated `order` times by `var`."""

    var: str
    order: int
    body: Node


@dataclass(frozen=True)
class PlusMinus(Node):
    r"""left ± right (left is 0 where the sign stands in front); sign -1 for \mp."""

    left: Node
    right: Node
    sign: int


@dataclass(frozen=True)
class Percent(Node):
    """body / 100."""

    body: Node


@dataclass(frozen=True)
class Degree(Node):
    """body degrees."""

    body: Node


@dataclass(frozen=True)
class Quantity(Node):
    """body with a unit, as written."""

    body: Node
    unit: str


@dataclass(frozen=True)
class Seq(Node):
    """Items between brackets; `left` and `right` are the brackets, "" for a bare list, whose order is free."""

    items: tuple[Node, ...]
    left: str = ""
    right: str = ""
    separator: str = ","


@dataclass(frozen=True)
class Matrix(Node):
    """Rows of equal length."""

    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True)
class SetOp(Node):
    """left and right joined by "union", "intersection" or "minus"."""

    op: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Builder(Node):
    """{head | condition}."""

    head: Node
    condition: Node


@dataclass(frozen=True)
class Relation(Node):
    """sides[0] ops[0] sides[1] ops[1] ..."""

    ops: tuple[str, ...]
    sides: tuple[Node, ...]


@dataclass(frozen=True)
class Ratio(Node):
    """a : b : ..."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Qualified(Node):
    """An answer with parameters, which are members of a domain: Z, N, N0, Z+, R, Q."""

    body: Node
    names: tuple[str, ...]
    domain: str


@dataclass(frozen=True)
class Words(Node):
    """Prose."""

    text: str


ZERO, ONE = Num(Fraction(0)), Num(Fraction(1))


def children(node: Node) -> Iterator[Node]:
    """The node's direct parts that are nodes."""
    for field in fields(node):
        yield from _nodes(getattr(node, field.name))


def _nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _nodes(part)


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it."""
    stack = [node]
    while stack:
        top = stack.pop()
        yield top
        stack.extend(children(top))


def contains(node: Node, kind: type | tuple[type, ...]) -> bool:
    """Whether the node or anything below it is of this kind."""
    return any(isinstance(part, kind) for part in walk(node))


def rebuild(node: Node, change: Any) -> Node:
    """The node with `change` applied to each direct part that is a node."""
    changes = {field.name: _changed(getattr(node, field.name), change) for field in fields(node)}
    return replace(node, **changes)


def _changed(value: Any, change: Any) -> Any:
    if isinstance(value, Node):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_changed(part, change) for part in value)
    return value


def both_signs(node: Node) -> list[Node]:
    r"""The node with every ± read as + and then as -; \mp takes the other sign. One node if there is none."""
    if not contains(node, PlusMinus):
        return [node]
    return [_signed(node, sign) for sign in (1, -1)]


def _signed(node: Node, sign: int) -> Node:
    if not isinstance(node, PlusMinus):
        return rebuild(node, lambda part: _signed(part, sign))
    left, right = _signed(node.left, sign), _signed(node.right, sign)
    return Call("add", (left, right if sign * node.sign > 0 else Call("neg", (right,))))


def free_symbols(node: Node) -> frozenset[str]:
    """Names of the symbols that the node's value depends on; an unknown function counts as one."""
    if isinstance(node, Sym):
        return frozenset([node.name])
    inner = frozenset().union(*map(free_symbols, children(node)))
    if isinstance(node, Fold) or (isinstance(node, Integral) and node.low and node.high):
        return (free_symbols(node.body) - {node.var}) | free_symbols(node.low) | free_symbols(node.high)
    if isinstance(node, Limit):
        return (free_symbols(node.body) - {node.var}) | free_symbols(node.point)
    return inner | {node.name + "()"} if isinstance(node, Apply) else inner


def with_symbol(node: Node, name: str) -> Node:
    """The node with the constant of this name, such as i, as a symbol: the index of a sum."""
    if node == Const(name):
        return Sym(name)
    return rebuild(node, lambda part: with_symbol(part, name))


def substitute(node: Node, names: dict[str, Node]) -> Node:
    """The node with symbols replaced."""
    if isinstance(node, Sym):
        return names.get(node.name, node)
    return rebuild(node, lambda part: substitute(part, names))
