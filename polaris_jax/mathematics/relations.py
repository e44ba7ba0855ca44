"""Equations, assignments and inequalities: what they assign, and when two of them say the same."""

import re

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.numeric import proportion
from polaris_jax.mathematics.symbols import GREEK

_REVERSED = {">": "<", ">=": "<="}
_UNKNOWNS = (n.Sym("x"), n.Sym("y"))  # |x| = 2 is an equation, |AB| = 2 and |z| = 2 give a length
_OF_ANGLES = frozenset(["sin", "cos", "tan", "cot", "sec", "csc"])
_SYMMETRIC = frozenset(["!=", "parallel", "perp", "cong", "<=>"])


def is_equation(node: n.Node) -> bool:
    """Whether a relation consists of equalities only."""
    return isinstance(node, n.Relation) and set(node.ops) == {"="}


def is_variable(node: n.Node) -> bool:
    """A name that can be assigned to: x, a_1, f(x), |AB|, (x, y); not a word such as SRAC."""
    if isinstance(node, n.Sym):
        return not (len(node.name) > 2 and node.name.isalpha() and node.name.isupper())
    if isinstance(node, n.Seq):
        return bool(node.left) and all(isinstance(item, n.Sym) for item in node.items)
    if isinstance(node, n.Call) and node.name == "abs":
        return node.args[0] not in _UNKNOWNS and is_asked(node.args[0])
    return isinstance(node, n.Apply)


def is_asked(node: n.Node) -> bool:
    """A quantity that a problem may ask for: a name, a function of names, a sum or product of distinct names."""
    if isinstance(node, (n.Sym, n.Apply)) or is_variable(node):
        return True
    if isinstance(node, n.Ratio):
        return all(map(is_asked, node.parts))
    if isinstance(node, n.SetOp):
        return is_asked(node.left) and is_asked(node.right)
    if not isinstance(node, n.Call) or n.contains(node, n.Num):
        return False
    return node.name not in ("pow", "neg", "sqrt") and all(is_asked(arg) for arg in node.args)


def is_named(node: n.Node) -> bool:
    r"""A variable, or what geometry names: AB, m\angle ABC, AB:CD, \frac{S_1}{S_2}, AB+BC, \sin A."""
    if is_variable(node) or isinstance(node, n.Sym):
        return True
    if isinstance(node, (n.Ratio, n.SetOp)):
        return is_asked(node)
    if not isinstance(node, n.Call):
        return False
    if node.name == "pow":
        return isinstance(node.args[0], n.Call) and node.args[0].name in _OF_ANGLES and is_named(node.args[0])
    if node.name == "mul":
        return _is_segment(node) or (node.args[0] == n.Sym("m") and _is_angle(node.args[1]))
    if node.name == "div":
        return all(is_named(part) and getattr(part, "name", "mul") not in ("div", "add") for part in node.args)
    if node.name == "add":
        return all(is_named(part) and not (isinstance(part, n.Sym) and not _is_angle(part)) for part in node.args)
    angles = [part for part in n.walk(node) if isinstance(part, n.Sym)]
    return node.name in _OF_ANGLES and bool(angles) and all(map(_is_angle, angles))


def _is_segment(node: n.Node) -> bool:
    """Points side by side: AB, A'B', A_1B_1, ABC."""
    if isinstance(node, n.Call) and node.name == "mul":
        return all(map(_is_segment, node.args))
    return isinstance(node, n.Sym) and node.name[:1].isupper() and len(re.sub(r"_.*|'", "", node.name)) == 1


def _is_angle(node: n.Node) -> bool:
    return isinstance(node, n.Sym) and (node.name.startswith("∠") or node.name in GREEK or _is_segment(node))


def assigned(node: n.Relation) -> tuple[n.Node, n.Node] | None:
    """Name and value of an assignment (either way round), or None for an equation between expressions."""
    if not is_equation(node) or len(node.sides) != 2:
        return None
    left, right = node.sides
    if is_variable(left) or (is_named(left) and not _is_about(right, left)):
        return left, right
    return (right, left) if isinstance(right, n.Sym) and is_variable(right) and not n.free_symbols(left) else None


def member_of(node: n.Node) -> n.Node | None:
    """The set that x in (a, b) or a < x < b says that a variable is in, or None for anything else."""
    if not isinstance(node, n.Relation):
        return None
    if node.ops == ("in",):
        return node.sides[1] if is_variable(node.sides[0]) else None
    node = ascending(node)
    if len(node.ops) != 2 or not set(node.ops) <= {"<", "<="} or not isinstance(node.sides[1], n.Sym):
        return None
    left, right = ("[" if node.ops[0] == "<=" else "("), ("]" if node.ops[1] == "<=" else ")")
    return n.Seq((node.sides[0], node.sides[2]), left, right)


def _is_about(value: n.Node, name: n.Node) -> bool:
    """Whether the value speaks of points or of the name's own parts, so that the equation is the answer."""
    free = n.free_symbols(value)
    if isinstance(name, n.Ratio) or (isinstance(name, n.Call) and name.name == "div"):
        return bool(free)  # a proportion
    return bool(free & n.free_symbols(name)) or any(symbol[:1].isupper() for symbol in free)


def assignments(node: n.Node) -> dict[n.Node, n.Node] | None:
    """Values by name of x=1, y=2 or (x,y)=(1,2); None for anything else, such as x=1, x=2."""
    if isinstance(node, n.Relation):
        pair = assigned(node)
        if pair is None or not isinstance(pair[0], n.Seq) or not isinstance(pair[1], n.Seq):
            return None
        names, values = pair[0].items, pair[1].items
        return dict(zip(names, values, strict=True)) if len(set(names)) == len(values) else None
    if not isinstance(node, n.Seq):
        return None
    pairs = [assigned(item) if isinstance(item, n.Relation) else None for item in node.items]
    if any(pair is None for pair in pairs):
        return None
    values = {pair[0]: pair[1] for pair in pairs if pair}
    return values if len(values) == len(pairs) > 1 else None


def answered(node: n.Relation) -> list[n.Node] | None:
    """Members of an equation that answers with its last one, as in m+n = 2+3 = 5: they must all be equal."""
    if not is_equation(node):
        return None
    sides = list(node.sides)
    if is_asked(sides[0]):
        return sides[1:]
    if is_variable(sides[-1]) and isinstance(sides[-1], n.Sym):
        return sides[:-1]
    return None if any(n.free_symbols(side) for side in sides) else sides


def renamed(name: n.Node, value: n.Node, like: n.Node) -> n.Node | None:
    """`value` with the arguments of f(x) called as in f(n), or None where the names differ otherwise."""
    if name == like or _is_graph(name, like) or _is_graph(like, name):
        return value
    if not (isinstance(name, n.Apply) and isinstance(like, n.Apply) and name.name == like.name):
        return None
    if len(name.args) != len(like.args) or not all(isinstance(arg, n.Sym) for arg in name.args + like.args):
        return None
    changed = [arg for arg in name.args + like.args if arg not in name.args or arg not in like.args]
    if any(arg.name[:1].isupper() for arg in changed):
        return None  # events and points, unlike arguments
    names = {old.name: new for old, new in zip(name.args, like.args, strict=True)}
    captured = {new.name for new in like.args} - names.keys()
    return None if captured & n.free_symbols(value) else n.substitute(value, names)


def _is_graph(curve: n.Node, function: n.Node) -> bool:
    """y = ... and f(x) = ..."""
    return curve == n.Sym("y") and function == n.Apply("f", (n.Sym("x"),))


def same_equation(a: n.Relation, b: n.Relation) -> bool:
    """Whether two equations are equal up to a factor that is not zero, or swapping of sides."""
    if len(a.sides) != 2 or len(b.sides) != 2:
        return False
    first, second = difference(a), difference(b)
    return bool(proportion(first, second)) or bool(proportion(_numerator(first), _numerator(second)))


def same_inequality(a: n.Relation, b: n.Relation) -> bool:
    """Whether two inequalities between two expressions are equal up to a positive factor."""
    a, b = ascending(a), ascending(b)
    if len(a.sides) != 2 or a.ops != b.ops or a.ops[0] not in ("<", "<="):
        return False
    ratio = proportion(difference(a), difference(b))
    return ratio is not None and ratio > 0


def ascending(node: n.Relation) -> n.Relation:
    """A chain of > and >= turned round, so that it ascends."""
    if not all(op in _REVERSED for op in node.ops):
        return node
    return n.Relation(tuple(_REVERSED[op] for op in reversed(node.ops)), node.sides[::-1])


def orders(node: n.Relation) -> list[n.Relation]:
    """The ways round in which the relation says the same."""
    node = ascending(node)
    if set(node.ops) <= _SYMMETRIC or (len(node.ops) > 1 and is_equation(node)):
        return [node, n.Relation(node.ops[::-1], node.sides[::-1])]
    return [node]


def difference(node: n.Relation) -> n.Node:
    """Left side minus right side."""
    left, right = node.sides
    return n.Call("add", (left, n.Call("neg", (right,))))


def _numerator(node: n.Node) -> n.Node:
    return _as_fraction(node)[0]


def _as_fraction(node: n.Node) -> tuple[n.Node, n.Node]:
    """Numerator and denominator of sums, products and quotients."""
    match node:
        case n.Call("neg", (body,)):
            top, bottom = _as_fraction(body)
            return n.Call("neg", (top,)), bottom
        case n.Call("div", (left, right)):
            (a, b), (c, d) = _as_fraction(left), _as_fraction(right)
            return _times(a, d), _times(b, c)
        case n.Call("mul", (left, right)):
            (a, b), (c, d) = _as_fraction(left), _as_fraction(right)
            return _times(a, c), _times(b, d)
        case n.Call("add", (left, right)):
            (a, b), (c, d) = _as_fraction(left), _as_fraction(right)
            if b == d:
                return n.Call("add", (a, c)), b
            return n.Call("add", (_times(a, d), _times(c, b))), _times(b, d)
    return node, n.ONE


def _times(a: n.Node, b: n.Node) -> n.Node:
    if a == n.ONE:
        return b
    return a if b == n.ONE else n.Call("mul", (a, b))
