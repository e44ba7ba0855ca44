"""Matrices with a factor in front."""

from collections.abc import Callable

from polaris_jax.mathematics import nodes as n


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
