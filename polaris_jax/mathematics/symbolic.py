"""What values do not decide, decided by sympy: calculus, series, matrix arithmetic, sets built from conditions.

Importing this module imports sympy. Each part of an answer that asks for sympy is replaced by its value, and the two
answers are compared as ever; what sympy cannot do stays what it is, so that it equals only its own form.
"""

import math
from collections.abc import Callable

import sympy

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics import relations
from polaris_jax.mathematics.compare import same_answer
from polaris_jax.mathematics.sympy_trees import Undecided, from_sympy, to_sympy
from polaris_jax.mathematics.undecided import asks_for_sympy, unknown

MAX_MEMBERS = 400
_RELATIONS = {"=": sympy.Eq, "!=": sympy.Ne, "<": sympy.Lt, "<=": sympy.Le, ">": sympy.Gt, ">=": sympy.Ge}
_FIELDS = (sympy.S.Reals, sympy.S.Complexes)
_DOMAINS = {"R": sympy.S.Reals, "Z": sympy.S.Reals, "N": sympy.Interval(0, sympy.oo)}  # integers are picked last
_DOMAINS |= dict.fromkeys(["N*", "N+", "N_+", "N_*", "Z+", "Z_+"], sympy.Interval(1, sympy.oo))
_CONSTANTS_OF_INTEGRATION = frozenset("CcKk")


def same_by_sympy(gold: n.Node, box: n.Node) -> bool:
    """Whether two answers are the same once sympy has worked out what it can. The first is the ground truth.

    Takes whatever time sympy takes: run it in a worker.
    """
    if _is_indefinite(gold) or _is_indefinite(box):
        return _same_antiderivative(gold, box)
    gold, box = _answered(gold), _answered(box)
    if same_answer(gold, box):
        return True
    if name := unknown(gold):
        numbered = [symbol for symbol in n.free_symbols(box) if symbol.startswith(f"{name}_")]
        box = n.substitute(box, dict.fromkeys(numbered, n.Sym(name)))  # x_1 = 2, x_2 = 3
    return any(same_answer(solutions, box) for solutions in _solutions(gold, box))


def _answered(node: n.Node) -> n.Node:
    r"""The tree resolved; of \int_0^1 x^2 dx = \frac13 the last side, where the others are the same."""
    done = resolved(node)
    if done == node or not relations.is_equation(node) or not asks_for_sympy(node.sides[0]):
        return done
    return done.sides[-1] if all(same_answer(done.sides[-1], side) for side in done.sides[:-1]) else done


def resolved(node: n.Node) -> n.Node:
    """The tree with what sympy can work out replaced by its value."""
    if not asks_for_sympy(node):
        return node
    if isinstance(node, n.Builder):
        return _tried(_members, node)
    if isinstance(node, (n.Fold, n.Integral, n.Limit, n.Derivative)) or _is_matrix_arithmetic(node):
        return _tried(_value, node)
    return n.rebuild(node, resolved)


def _tried(change: Callable[[n.Node], n.Node], node: n.Node) -> n.Node:
    try:
        return change(node)
    except MemoryError:
        raise
    except Exception:  # sympy's own, of any kind: undecided
        return node


def _is_matrix_arithmetic(node: n.Node) -> bool:
    return isinstance(node, n.Call) and n.contains(node, n.Matrix)


def _value(node: n.Node) -> n.Node:
    value = to_sympy(node, {})
    done = value.doit()
    if isinstance(done, sympy.Limit) and done.args[2] == sympy.oo:
        found = sympy.limit_seq(done.args[0], done.args[1])
        done = done if found is None else found
    if isinstance(done, sympy.Product) and done.args[1][2] == sympy.oo:
        done = _infinite_product(done)
    return from_sympy(done)


def _infinite_product(product: sympy.Product) -> sympy.Expr:
    """The limit of the finite products, where sympy knows these."""
    body, (variable, low, _) = product.args
    last = sympy.Dummy(integer=True, positive=True)
    finite = sympy.Product(body, (variable, low, last)).doit()
    return product if finite.has(sympy.Product) else sympy.limit(sympy.combsimp(finite), last, sympy.oo)


# antiderivatives


def _is_indefinite(node: n.Node) -> bool:
    return any(isinstance(part, n.Integral) and part.low is None for part in n.walk(node))


def _same_antiderivative(gold: n.Node, box: n.Node) -> bool:
    """Whether both are antiderivatives of the same function, each with its constant or written as an integral."""
    (first, *rest) = {part.var for side in (gold, box) for part in n.walk(side) if isinstance(part, n.Integral)}
    general = (_is_indefinite(side) or n.free_symbols(side) & _CONSTANTS_OF_INTEGRATION for side in (gold, box))
    if rest or not all(general):
        return False
    sides = [_tried(_value, n.Derivative(first, 1, side)) for side in (gold, box)]
    return not any(n.contains(side, n.Derivative) for side in sides) and same_answer(*sides)


# sets and equations


def _members(node: n.Builder) -> n.Node:
    """The set that a condition describes, as intervals or as its members."""
    head, alternatives = _head_and_conditions(node)
    conditions = [one for together in alternatives for one in together]
    names = frozenset.union(*map(n.free_symbols, conditions))
    if len(names) != 1 or not all(isinstance(condition, n.Relation) for condition in conditions):
        raise Undecided
    (name,) = names
    values = sympy.Union(*(_from_conditions(together, name) for together in alternatives))
    if head == n.Sym(name):
        return from_sympy(values)
    if n.free_symbols(head) != names or not isinstance(values, sympy.FiniteSet) or len(values) > MAX_MEMBERS:
        raise Undecided
    return n.Seq(tuple(n.substitute(head, {name: from_sympy(value)}) for value in values), "set", "set")


def _head_and_conditions(node: n.Builder) -> tuple[n.Node, list[tuple[n.Node, ...]]]:
    """What the members look like, and alternatives of conditions that hold together."""
    conditions = node.condition.items if isinstance(node.condition, n.Seq) else (node.condition,)
    if isinstance(node.condition, n.Seq) and node.condition.separator == "or":
        alternatives = [(one,) for one in conditions]
    else:
        alternatives = [conditions]
    if isinstance(node.head, n.Relation):  # {x in R | ...}
        return node.head.sides[0], [(node.head, *together) for together in alternatives]
    values = [one.sides[1] for one in conditions if _gives_value(one, node.head)]
    if len(alternatives) == len(values) == 1 and len(conditions) > 1:  # {y | y = x^2, x in ...}
        return values[0], [tuple(one for one in conditions if not _gives_value(one, node.head))]
    return node.head, alternatives


def _gives_value(condition: n.Node, head: n.Node) -> bool:
    if not isinstance(condition, n.Relation) or condition.ops != ("=",) or condition.sides[0] != head:
        return False
    return head not in n.walk(condition.sides[1])


def _from_conditions(conditions: tuple[n.Node, ...], name: str) -> sympy.Set:
    variable = sympy.Symbol(name, real=True)
    values, integers = sympy.S.Reals, False
    for condition in conditions:
        if condition.ops == ("in",) and condition.sides[0] == n.Sym(name):
            integers |= getattr(condition.sides[1], "name", "")[:1] in ("Z", "N")
            values = values.intersect(_domain(condition.sides[1]))
            continue
        sides = [to_sympy(side, {name: variable}) for side in condition.sides]
        for left, op, right in zip(sides, condition.ops, sides[1:], strict=False):
            values = values.intersect(sympy.solveset(_RELATIONS[op](left, right), variable, sympy.S.Reals))
    if not integers:
        return values
    whole = _integers_in(values)
    if 0 in whole and any(isinstance(one, n.Relation) and one.sides[-1] == n.Const("N") for one in conditions):
        raise Undecided  # some count 0 among the natural numbers, some do not
    return whole


def _domain(node: n.Node) -> sympy.Set:
    """A named set, {1, 2, 3} or an interval."""
    match node:
        case n.Const(name) | n.Sym(name) if name in _DOMAINS:
            return _DOMAINS[name]
        case n.Seq(items, "set", _):
            return sympy.FiniteSet(*(to_sympy(item, {}) for item in items))
        case n.Seq((low, high), "(" | "[" as left, ")" | "]" as right):
            return sympy.Interval(to_sympy(low, {}), to_sympy(high, {}), left == "(", right == ")")
    raise Undecided


def _integers_in(values: sympy.Set) -> sympy.Set:
    if values == sympy.S.Reals:
        return sympy.S.Integers
    members: set[sympy.Integer] = set()
    for part in values.args if isinstance(values, sympy.Union) else (values,):
        if isinstance(part, sympy.FiniteSet):
            members |= {value for value in part if value.is_Integer}
        elif isinstance(part, sympy.Interval) and part.inf.is_finite and part.sup.is_finite:
            if part.sup - part.inf > MAX_MEMBERS:
                raise Undecided
            candidates = range(math.floor(part.inf), math.ceil(part.sup) + 1)
            members |= {sympy.Integer(k) for k in candidates if part.contains(sympy.Integer(k)) == True}  # noqa: E712
        elif part != sympy.S.EmptySet:
            raise Undecided
    return sympy.FiniteSet(*members)


def _solutions(gold: n.Node, box: n.Node) -> list[n.Node]:
    """Real and complex solutions of a gold that is an equation in one unknown, where the box names solutions."""
    name = unknown(gold)
    if name is None or any(isinstance(part, n.Relation) and part.sides[0] != n.Sym(name) for part in n.walk(box)):
        return []
    found = (_tried(lambda equation, domain=domain: _roots(equation, name, domain), gold) for domain in _FIELDS)
    return [roots for roots in found if roots != gold]


def _roots(equation: n.Node, name: str, field: sympy.Set) -> n.Node:
    """x = a, x = b, ... with every solution of an equation in a field."""
    variable = sympy.Symbol(name, real=True if field == sympy.S.Reals else None)
    left, right = (to_sympy(side, {name: variable}) for side in equation.sides)
    roots = sympy.solveset(left - right, variable, field)
    if not isinstance(roots, sympy.FiniteSet) or not 0 < len(roots) <= MAX_MEMBERS:
        raise Undecided
    return n.Seq(tuple(n.Relation(("=",), (n.Sym(name), from_sympy(root))) for root in roots))
