"""Matrices and vectors: factors in front of them, what their brackets say."""

from collections.abc import Callable

from polaris_jax.mathematics import nodes as n

_BRACKETS = frozenset(["(", "[", "<"])


def multiplied_out(node: n.Node) -> n.Node:
    """A matrix with its scalar factor, sign or divisor in each entry; any other tree as it is."""
    match node:
        case n.Call("neg", (body,)):
            return _each(multiplied_out(body), lambda entry: n.Call("neg", (entry,)), node)
        case n.Call("mul", (left, right)) if n.contains(right, n.Matrix):
            return _each(multiplied_out(right), lambda entry: n.Call("mul", (left, entry)), node)
        case n.Call("mul" | "div" as name, (left, right)) if n.contains(left, n.Matrix):
            return _each(multiplied_out(left), lambda entry: n.Call(name, (entry, right)), node)
    return node


def as_column(node: n.Node) -> n.Node:
    r"""The vector that \binom{1}{2} is where another vector is expected."""
    return n.Matrix(((node.args[0],), (node.args[1],))) if isinstance(node, n.Call) and node.name == "binom" else node


def _each(body: n.Node, change: Callable[[n.Node], n.Node], otherwise: n.Node) -> n.Node:
    if not isinstance(body, n.Matrix):
        return otherwise
    return n.Matrix(tuple(tuple(map(change, row)) for row in body.rows))


def components(node: n.Node) -> tuple[n.Node, ...]:
    """The entries of a vector, be it a row, a column or a tuple."""
    if isinstance(node, n.Matrix):
        return node.rows[0] if len(node.rows) == 1 else tuple(row[0] for row in node.rows)
    return node.items


def brackets(node: n.Node) -> tuple[str, str] | None:
    """What the brackets say: which ends belong to an interval of two numbers; nothing where it can be no interval."""
    if isinstance(node, n.Matrix):
        return ("(", ")") if len(node.rows) == 1 or len(node.rows[0]) == 1 else None
    if not isinstance(node, n.Seq) or node.left not in _BRACKETS:
        return None
    straight = (node.left, node.right) in (("(", ")"), ("[", "]"), ("<", ">"))
    if straight and (len(node.items) != 2 or node.left == "<"):
        return ("(", ")")
    return node.left, node.right
