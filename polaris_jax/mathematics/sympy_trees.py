"""Our trees as sympy's and back. Nothing is parsed: each node becomes one object, with bounds on what is computed."""

from collections.abc import Callable
from fractions import Fraction
from functools import reduce

import sympy
from sympy.core.function import AppliedUndef

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.symbols import listed

MAX_POWER_BITS = 100_000  # of a power of numbers, which sympy computes as soon as it is written down
MAX_ARGUMENT = 2_000  # of a factorial or binomial coefficient
MAX_ENTRIES = 400  # of a matrix
MAX_SYMBOLIC_ROWS = 4  # of a matrix to the power of n
INTEGER_LETTERS = frozenset("ijklmnpqrKLMN")
Names = dict[str, sympy.Symbol]


class Undecided(Exception):
    """sympy does not know, or the question is not worth its cost."""


# from our trees


def to_sympy(node: n.Node, names: Names) -> sympy.Basic:
    """The sympy object of a tree; symbols that `names` does not hold are positive. Raises Undecided."""
    match node:
        case n.Num(value):
            return sympy.Rational(value.numerator, value.denominator)
        case n.Sym("…") | n.Words():
            raise Undecided
        case n.Sym(name):
            return names.get(name) or sympy.Symbol(name, positive=True)
        case n.Const(name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case n.Call(name, args):
            return _call(name, [to_sympy(arg, names) for arg in args])
        case n.Apply(name, args):
            return sympy.Function(name)(*(to_sympy(arg, names) for arg in args))
        case n.Percent(body):
            return to_sympy(body, names) / 100
        case n.Degree(body):
            return to_sympy(body, names) * sympy.pi / 180
        case n.Matrix(rows) if sum(map(len, rows)) <= MAX_ENTRIES:
            return sympy.Matrix([[to_sympy(entry, names) for entry in row] for row in rows])
        case n.Fold() | n.Integral() | n.Limit() | n.Derivative():
            return _bound(node, names)
    raise Undecided


def _bound(node: n.Fold | n.Integral | n.Limit | n.Derivative, names: Names) -> sympy.Basic:
    """A sum, product, integral, limit or derivative, not yet carried out."""
    if isinstance(node, n.Derivative):
        variable = names.get(node.var) or sympy.Symbol(node.var, real=True)
        return sympy.Derivative(to_sympy(node.body, names | {node.var: variable}), (variable, node.order))
    if isinstance(node, n.Limit):
        point = to_sympy(node.point, names)
        variable = sympy.Symbol(node.var, real=True, positive=True if point == sympy.oo else None)
        body = to_sympy(node.body, names | {node.var: variable})
        return sympy.Limit(body, variable, point, node.side or ("-" if point == sympy.oo else "+-"))
    if isinstance(node, n.Integral):
        variable = sympy.Symbol(node.var, real=True)
        ends = [to_sympy(end, names) for end in (node.low, node.high) if end is not None]
        return sympy.Integral(to_sympy(node.body, names | {node.var: variable}), (variable, *ends))
    letters = [name for name in n.free_symbols(node.high) if name not in names and name[:1] in INTEGER_LETTERS]
    names = names | {name: sympy.Symbol(name, integer=True, positive=True) for name in letters}
    low, high = to_sympy(node.low, names), to_sympy(node.high, names)
    variable = sympy.Symbol(node.var, integer=True, nonnegative=low.is_nonnegative or None)
    body = to_sympy(node.body, names | {node.var: variable})
    return (sympy.Sum if node.kind == "sum" else sympy.Product)(body, (variable, low, high))


def _call(name: str, args: list[sympy.Basic]) -> sympy.Basic:
    if any(isinstance(arg, sympy.MatrixBase) for arg in args):
        return _of_matrices(name, args)
    if name not in _FUNCTIONS:
        raise Undecided
    return _FUNCTIONS[name](*args)


def _of_matrices(name: str, args: list[sympy.Basic]) -> sympy.Basic:
    first, second = args[0], args[-1]
    square = isinstance(first, sympy.MatrixBase) and first.is_square
    if name in ("add", "mul"):
        return first + second if name == "add" else first * second
    if name == "neg":
        return -first
    if name == "div" and not isinstance(second, sympy.MatrixBase):
        return first / second
    if name in ("det", "abs") and square:
        return first.det()
    if name == "pow" and isinstance(first, sympy.MatrixBase) and second in _TRANSPOSES:
        return first.T
    if name == "pow" and square and isinstance(second, sympy.Integer) and abs(second) <= MAX_ARGUMENT:
        return first**second
    if name == "pow" and square and isinstance(second, sympy.Symbol) and first.rows <= MAX_SYMBOLIC_ROWS:
        return first**second
    raise Undecided


def _power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    if base.is_Rational and exponent.is_Rational and base not in (0, 1, -1):
        bits = max(base.p.bit_length(), base.q.bit_length())
        if abs(exponent) * bits > MAX_POWER_BITS:
            raise Undecided
    return sympy.Pow(base, exponent)


def _small(function: Callable) -> Callable:
    """The function, which sympy computes at once, of numbers that are not too large."""

    def apply(*args: sympy.Expr) -> sympy.Expr:
        if any(arg.is_Rational and abs(arg) > MAX_ARGUMENT for arg in args):
            raise Undecided
        return function(*args)

    return apply


_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "inf": sympy.oo}
_TRANSPOSES = (sympy.Symbol("T", positive=True), sympy.Symbol("top", positive=True))
_SAME_NAME = listed("sin cos tan cot sec csc sinh cosh tanh coth exp")
_INVERSES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec", "arccsc": "acsc"}
_FUNCTIONS: dict[str, Callable[..., sympy.Expr]] = (
    {name: getattr(sympy, name) for name in _SAME_NAME}
    | {name: getattr(sympy, short) for name, short in _INVERSES.items()}
    | {
        "add": sympy.Add,
        "neg": lambda a: -a,
        "mul": sympy.Mul,
        "div": lambda a, b: a * _power(b, sympy.Integer(-1)),
        "pow": _power,
        "sqrt": sympy.sqrt,
        "root": lambda a, k: _power(a, 1 / k),
        "cbrt": lambda a: _power(a, sympy.Rational(1, 3)),
        "abs": sympy.Abs,
        "log": sympy.log,
        "ln": sympy.log,
        "lg": lambda a: sympy.log(a, 10),
        "floor": sympy.floor,
        "ceil": sympy.ceiling,
        "factorial": _small(sympy.factorial),
        "binom": _small(sympy.binomial),
        "max": sympy.Max,
        "min": sympy.Min,
    }
)


# to our trees


def from_sympy(value: sympy.Basic) -> n.Node:
    """The tree of a sympy object; what sympy left undone is one opaque name. Raises Undecided for what is no value."""
    if isinstance(value, sympy.MatrixBase) and value.shape == (1, 1):
        return from_sympy(value[0, 0])
    if isinstance(value, sympy.MatrixBase):
        return n.Matrix(tuple(tuple(map(from_sympy, value.row(i))) for i in range(value.rows)))
    if isinstance(value, sympy.Set):
        return _from_set(value)
    if value in _NAMED:
        return _NAMED[value]
    if isinstance(value, sympy.Rational):
        return n.Num(Fraction(value.p, value.q))
    if isinstance(value, sympy.Symbol):
        return n.Sym(value.name)
    if isinstance(value, (sympy.Add, sympy.Mul)):
        name = "add" if isinstance(value, sympy.Add) else "mul"
        return reduce(lambda left, right: n.Call(name, (left, right)), map(from_sympy, value.args))
    if isinstance(value, sympy.Pow):
        return _from_power(value)
    if isinstance(value, sympy.exp):
        return n.Call("pow", (n.Const("e"), from_sympy(value.args[0])))
    if isinstance(value, sympy.gamma):
        return n.Call("factorial", (from_sympy(value.args[0] - 1),))
    if isinstance(value, sympy.Piecewise):
        return from_sympy(_usual_branch(value))
    if isinstance(value, sympy.sign):
        return from_sympy(value.args[0] / sympy.Abs(value.args[0]))
    if isinstance(value, _UNDONE):
        return _opaque(value)
    if isinstance(value, (sympy.Function, AppliedUndef)):
        return _from_function(value)
    raise Undecided


def _from_power(value: sympy.Pow) -> n.Node:
    base, exponent = value.args
    if exponent == -1:
        return n.Call("div", (n.ONE, from_sympy(base)))
    if isinstance(exponent, sympy.Rational) and exponent.p == 1:
        name, *index = ("sqrt",) if exponent.q == 2 else ("root", n.Num(Fraction(exponent.q)))
        return n.Call(name, (from_sympy(base), *index))
    return n.Call("pow", (from_sympy(base), from_sympy(exponent)))


def _from_function(value: sympy.Function) -> n.Node:
    name = value.func.__name__
    args = tuple(map(from_sympy, value.args))
    known = None if isinstance(value, AppliedUndef) else _NAMES.get(name)
    return n.Call(known, args) if known else n.Apply(name, args)


def _usual_branch(value: sympy.Piecewise) -> sympy.Expr:
    """The branch that holds in general or where a series converges; others are single points, or undone."""
    branches = [
        branch for branch, condition in value.args if not isinstance(condition, sympy.Eq) and not branch.has(*_UNDONE)
    ]
    if len(branches) != 1:
        raise Undecided
    return branches[0]


def _opaque(value: sympy.Expr) -> n.Node:
    """What sympy left undone as a function of its free symbols, named by its form with bound names made alike."""
    form = value.func(sympy.expand(value.args[0]), *value.args[1:]).as_dummy()
    return n.Apply(f"undone {form}", tuple(n.Sym(name) for name in sorted(map(str, value.free_symbols))))


def _from_set(value: sympy.Set) -> n.Node:
    match value:
        case sympy.FiniteSet():
            return n.Seq(tuple(map(from_sympy, value.args)), "set", "set")
        case sympy.Union() | sympy.Intersection():
            op = "union" if isinstance(value, sympy.Union) else "intersection"
            return reduce(lambda left, right: n.SetOp(op, left, right), map(_from_set, value.args))
        case sympy.Complement():
            return n.SetOp("minus", *map(_from_set, value.args))
        case _ if value in _SETS:
            return n.Const(_SETS[value])
        case sympy.Interval():
            left, right = "(" if value.left_open else "[", ")" if value.right_open else "]"
            return n.Seq((from_sympy(value.start), from_sympy(value.end)), left, right)
    raise Undecided


_UNDONE = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)
_NAMED = {
    sympy.pi: n.Const("pi"),
    sympy.E: n.Const("e"),
    sympy.I: n.Const("i"),
    sympy.oo: n.Const("inf"),
    -sympy.oo: n.Call("neg", (n.Const("inf"),)),
    sympy.EulerGamma: n.Sym("gamma"),
}
_NAMES = (
    {name: name for name in _SAME_NAME}
    | {short: name for name, short in _INVERSES.items()}
    | {"log": "ln", "Abs": "abs", "ceiling": "ceil", "floor": "floor", "factorial": "factorial", "binomial": "binom"}
    | {"Max": "max", "Min": "min"}
)
_SETS = {sympy.S.EmptySet: "empty", sympy.S.Reals: "R", sympy.S.Integers: "Z"}
