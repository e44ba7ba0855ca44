"""The number that a tree stands for."""

import hashlib
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import reduce

from mpmath import mp, mpc

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.arithmetic import NotANumber, TooLarge, Value, add, divide, inexact, multiply
from polaris_jax.mathematics.functions import FUNCTIONS, TRIGONOMETRIC, integer, log

MAX_FOLD = 1_000
MAX_NESTED_FOLD = 40


@dataclass(frozen=True)
class Env:
    """Values of the symbols; the base of a bare log (None is e); what one degree counts as."""

    symbols: dict[str, Value] = field(default_factory=dict)
    log_base: int | None = None
    degrees: bool = False  # True counts a degree as pi/180, False as 1


def evaluate(node: n.Node, env: Env) -> Value:
    """Value of the tree. Raises NotANumber, TooLarge, NeedsPrecision."""
    match node:
        case n.Num(value):
            return value
        case n.Sym(name):
            if name not in env.symbols:
                raise NotANumber(name)
            return env.symbols[name]
        case n.Const(name):
            return _constant(name)
        case n.Call(name, args):
            return _call(name, args, env)
        case n.Apply(name, args):
            return _unknown_function(name, [evaluate(arg, env) for arg in args])
        case n.Percent(body):
            return divide(evaluate(body, env), Fraction(100))
        case n.Degree(body):
            value = evaluate(body, env)
            return multiply(value, mp.pi / 180) if env.degrees else value
        case n.Quantity(body, _):
            return evaluate(body, env)
        case n.Fold():
            return _fold(node, env)
        case n.Ratio((first, second)):
            return divide(evaluate(first, env), evaluate(second, env))
    raise NotANumber(type(node).__name__)


def _constant(name: str) -> Value:
    if name == "pi":
        return +mp.pi
    if name == "e":
        return +mp.e
    if name == "i":
        return mpc(0, 1)
    raise NotANumber(name)


def _call(name: str, args: tuple[n.Node, ...], env: Env) -> Value:
    if name == "det":
        if not isinstance(args[0], n.Matrix):
            raise NotANumber("determinant of no matrix")
        return _determinant([[evaluate(item, env) for item in row] for row in args[0].rows])
    if name in TRIGONOMETRIC:
        env = replace(env, degrees=True)
    values = [evaluate(arg, env) for arg in args]
    if name == "log" and len(values) == 1:
        return log(values[0], None if env.log_base is None else Fraction(env.log_base))
    if name not in FUNCTIONS:
        raise NotANumber(name)
    return FUNCTIONS[name](*values)


def _unknown_function(name: str, values: list[Value]) -> Value:
    """A fixed arbitrary value for each argument: equal arguments, however written, give equal values."""
    key = name + "|".join(mp.nstr(inexact(value), 12) for value in values)
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return Fraction(int.from_bytes(digest, "big"), 1 << 30) + Fraction(1, 3)


def _fold(node: n.Fold, env: Env) -> Value:
    limit = MAX_FOLD if not n.contains(node.body, n.Fold) else MAX_NESTED_FOLD
    low, high = integer(evaluate(node.low, env)), integer(evaluate(node.high, env))
    if high - low > limit:
        raise TooLarge("sum or product")
    terms = (
        evaluate(node.body, replace(env, symbols=env.symbols | {node.var: Fraction(k)})) for k in range(low, high + 1)
    )
    return reduce(add, terms, Fraction(0)) if node.kind == "sum" else reduce(multiply, terms, Fraction(1))


def _determinant(rows: list[list[Value]]) -> Value:
    if len(rows) > 6 or any(len(row) != len(rows) for row in rows):
        raise NotANumber("no small square matrix")
    if len(rows) == 1:
        return rows[0][0]
    total: Value = Fraction(0)
    for column, entry in enumerate(rows[0]):
        minor = _determinant([row[:column] + row[column + 1 :] for row in rows[1:]])
        total = add(total, multiply(entry, minor) * (-1) ** column)
    return total
