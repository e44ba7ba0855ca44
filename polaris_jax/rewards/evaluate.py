"""The number that a tree stands for: an exact Fraction where it can be one, else mpmath at the working precision.

Every operation is bounded: a number that would be too large, or precision that would be too high, raises TooLarge.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import reduce

from mpmath import libmp, mp, mpc, mpf

from polaris_jax.rewards import nodes as n

Value = Fraction | mpf | mpc
MAX_BITS = 200_000  # of an exact number
MAX_MAGNITUDE = 1 << 24  # of log2 of an inexact one
MAX_FACTORIAL = 10_000
MAX_FOLD = 1_000
MAX_NESTED_FOLD = 40


class NotANumber(Exception):
    """The tree has no value: a division by zero, an infinity, a list."""


class TooLarge(Exception):
    """The value exists but is not worth its cost."""


class NeedsPrecision(Exception):
    """A sum of this many decimal digits between its terms would lose the smaller one."""

    def __init__(self, digits: int):
        super().__init__(digits)
        self.digits = digits


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
        return _determinant([[evaluate(item, env) for item in row] for row in args[0].rows])
    if name in TRIGONOMETRIC:
        env = replace(env, degrees=True)
    values = [evaluate(arg, env) for arg in args]
    if name == "log" and len(values) == 1:
        return _log(values[0], None if env.log_base is None else Fraction(env.log_base))
    if name not in FUNCTIONS:
        raise NotANumber(name)
    return FUNCTIONS[name](*values)


# arithmetic


def _without_noise(result: mpf | mpc, scale: mpf | mpc) -> mpf | mpc:
    """Zero where the result is only rounding left over from terms of this size: sin(pi), sqrt(2)^2 - 2."""
    if result != 0 and mp.mag(result) < mp.mag(scale) - mp.prec + 33:
        return mpf(0)
    return result


def _spare_digits() -> int:
    """Digits that one number may differ from another by and still be told apart at the working precision."""
    return max(mp.dps - 45, 20)


def inexact(value: Value) -> mpf | mpc:
    """The value as an mpmath number. Raises NeedsPrecision where the working precision cannot hold its digits."""
    if isinstance(value, Fraction):
        digits = int(0.302 * max(value.numerator.bit_length(), value.denominator.bit_length()))
        if digits > _spare_digits():
            raise NeedsPrecision(digits)
        return mpf(value.numerator) / value.denominator
    return value


def _bounded(value: Fraction) -> Value:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        return inexact(value)
    return value


def _settled(value: mpf | mpc) -> mpf | mpc:
    """A result of mpmath, real where it can be, refused where it is not finite or too large to go on with."""
    if isinstance(value, mpc) and value.imag == 0:
        value = value.real
    if not mp.isfinite(value):
        raise NotANumber("not finite")
    if value != 0 and abs(mp.mag(value)) > MAX_MAGNITUDE:
        raise TooLarge("magnitude")
    return value


def add(a: Value, b: Value) -> Value:
    """a + b."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a + b)
    a, b = inexact(a), inexact(b)
    if a != 0 and b != 0:
        digits = int(abs(mp.mag(a) - mp.mag(b)) * 0.302)
        if digits > _spare_digits():
            raise NeedsPrecision(digits)
    return _settled(_without_noise(a + b, a))


def multiply(a: Value, b: Value) -> Value:
    """a * b."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a * b)
    return _settled(inexact(a) * inexact(b))


def divide(a: Value, b: Value) -> Value:
    """a / b."""
    if b == 0:
        raise NotANumber("division by zero")
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a / b)
    return _settled(inexact(a) / inexact(b))


def power(a: Value, b: Value) -> Value:
    """a ** b: the principal value, but the real one for odd roots of negative numbers."""
    if a == 0:
        if isinstance(b, mpc) or b <= 0:
            raise NotANumber("zero to a power that is not positive")
        return Fraction(0)
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _rational_power(a, b)
    if isinstance(a, mpf) and a < 0 and isinstance(b, Fraction) and b.denominator % 2 and b.denominator > 1:
        return multiply(Fraction(-1 if b.numerator % 2 else 1), power(-a, b))
    return _inexact_power(inexact(a), inexact(b))


def _rational_power(a: Fraction, b: Fraction) -> Value:
    if b.denominator > 1:
        if b.denominator % 2 and a < 0:
            sign = -1 if b.numerator % 2 else 1
            return multiply(Fraction(sign), _rational_power(-a, b))
        root = _exact_root(a, b.denominator) if a > 0 and b.denominator < 64 else None
        if root is None:
            return _inexact_power(inexact(a), inexact(b))
        a, b = root, Fraction(b.numerator)
    if abs(a) == 1:
        return a if b % 2 else Fraction(1)
    if abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) > MAX_BITS:
        return _inexact_power(inexact(a), inexact(b))
    return a ** int(b)


def _resolved(argument: mpf | mpc) -> mpf | mpc:
    """The argument of a function that differs from a constant by about its square: cos(1e-50) is not 1."""
    digits = int(-0.603 * mp.mag(argument)) if argument != 0 else 0
    if digits > _spare_digits():
        raise NeedsPrecision(digits + 45)
    return argument


def _inexact_power(a: mpf | mpc, b: mpf | mpc) -> mpf | mpc:
    b = _resolved(b)
    if b != 0 and a != 1 and mp.mag(b) + math.log2(abs(mp.mag(a)) + 2) > 26:
        raise TooLarge("power")
    if isinstance(b, mpc) and mp.mag(b) > 26:
        raise TooLarge("power")
    return _settled(mp.power(a, b))


def _exact_root(a: Fraction, k: int) -> Fraction | None:
    if max(a.numerator.bit_length(), a.denominator.bit_length()) > 20_000:
        return None
    top, bottom = (_integer_root(part, k) for part in (a.numerator, a.denominator))
    return Fraction(top, bottom) if top and bottom else None


def _integer_root(value: int, k: int) -> int | None:
    root = math.isqrt(value) if k == 2 else _iroot(value, k)
    return root if root**k == value else None


def _iroot(value: int, k: int) -> int:
    """Floor of the k-th root, by bisection on integers."""
    low, high = 0, 1 << (value.bit_length() // k + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**k <= value else (low, middle - 1)
    return low


# functions


def _real(value: Value) -> Fraction | mpf:
    if isinstance(value, mpc):
        if abs(value.imag) > abs(value) * mpf(10) ** (-mp.dps // 2):
            raise NotANumber("complex where a real number is needed")
        return value.real
    return value


def _integer(value: Value) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1:
        raise NotANumber("no integer")
    return int(value)


def _floor(value: Value) -> Fraction:
    value = _real(value)
    if isinstance(value, Fraction):
        return Fraction(math.floor(value))
    nearest = mp.nint(value)
    near = abs(value - nearest) < mpf(10) ** (-mp.dps // 2)
    return Fraction(int(nearest if near else mp.floor(value)))


def _ceil(value: Value) -> Fraction:
    return -_floor(-value)


def _log(value: Value, base: Value | None = None) -> Value:
    if value == 0 or base in (0, 1):
        raise NotANumber("log of zero, or to base 0 or 1")
    result = mp.log(inexact(value))
    return _settled(result if base is None else result / mp.log(inexact(base)))


def _exp(value: Value) -> Value:
    return _inexact_power(+mp.e, inexact(value))


def _cosh(value: Value) -> Value:
    return multiply(add(_exp(value), _exp(-value)), Fraction(1, 2))


def _sinh(value: Value) -> Value:
    return multiply(add(_exp(value), -_exp(-value)), Fraction(1, 2))


def _factorial(value: Value) -> Value:
    if isinstance(value, Fraction) and value.denominator == 1:
        if value < 0:
            raise NotANumber("factorial of a negative integer")
        if value <= MAX_FACTORIAL:
            return Fraction(math.factorial(int(value)))
    return _gamma(add(value, Fraction(1)))


def _gamma(value: Value) -> Value:
    if mp.mag(inexact(value)) > 20:
        raise TooLarge("gamma")
    return _settled(mp.gamma(inexact(value)))


def _double_factorial(value: Value) -> Value:
    count = _integer(value)
    if not 0 <= count <= MAX_FACTORIAL:
        raise TooLarge("double factorial")
    return Fraction(math.prod(range(count, 0, -2)))


def _binomial(top: Value, bottom: Value) -> Value:
    exact = isinstance(top, Fraction) and isinstance(bottom, Fraction) and top.denominator == bottom.denominator == 1
    if exact and 0 <= top <= MAX_FACTORIAL:
        return Fraction(math.comb(int(top), int(bottom)) if bottom >= 0 else 0)
    if max(mp.mag(inexact(top)), mp.mag(inexact(bottom))) > 16:
        raise TooLarge("binomial")
    return _settled(mp.binomial(inexact(top), inexact(bottom)))


def _modulo(value: Value, modulus: Value) -> Value:
    if modulus == 0:
        raise NotANumber("mod 0")
    return Fraction(_integer(value) % _integer(modulus))


def _through(function: Callable) -> Callable[[Value], Value]:
    """An mpmath function of one argument on our values."""

    def apply(value: Value) -> Value:
        if mp.mag(inexact(value)) > 64 if value != 0 else False:
            raise TooLarge("argument")
        try:
            return _settled(function(_resolved(inexact(value))))
        except (ZeroDivisionError, ValueError, OverflowError, libmp.NoConvergence) as error:
            raise NotANumber("function outside its domain") from error

    return apply


def _without_pole(function: Callable) -> Callable:
    """A trigonometric function that has no value where only rounding keeps it finite, such as tan(pi/2)."""

    def apply(argument: mpf | mpc) -> mpf | mpc:
        result = _without_noise(function(argument), argument)
        if result != 0 and mp.mag(result) > mp.prec // 2:
            raise NotANumber("pole")
        return result

    return apply


TRIGONOMETRIC = frozenset("sin cos tan cot sec csc cis".split())
_MPMATH = "sin cos tan cot sec csc".split()
_INVERSE = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec", "arccsc": "acsc"}
FUNCTIONS: dict[str, Callable[..., Value]] = (
    {name: _through(_without_pole(getattr(mp, name))) for name in _MPMATH}
    | {name: _through(getattr(mp, short)) for name, short in _INVERSE.items()}
    | {
        "add": add,
        "neg": lambda a: -a,
        "mul": multiply,
        "div": divide,
        "pow": power,
        "sqrt": lambda a: power(a, Fraction(1, 2)),
        "root": lambda a, k: power(a, divide(Fraction(1), k)),
        "cbrt": lambda a: power(a, Fraction(1, 3)),
        "abs": abs,
        "floor": _floor,
        "ceil": _ceil,
        "log": _log,
        "ln": _log,
        "lg": lambda a: _log(a, Fraction(10)),
        "exp": _exp,
        "cis": lambda a: _exp(multiply(a, mpc(0, 1))),
        "sinh": _sinh,
        "cosh": _cosh,
        "tanh": lambda a: divide(_sinh(a), _cosh(a)),
        "coth": lambda a: divide(_cosh(a), _sinh(a)),
        "factorial": _factorial,
        "factorial2": _double_factorial,
        "binom": _binomial,
        "mod": _modulo,
        "max": lambda *values: max(map(_real, values)),
        "min": lambda *values: min(map(_real, values)),
        "gcd": lambda *values: Fraction(math.gcd(*map(_integer, values))),
        "lcm": lambda *values: Fraction(math.lcm(*map(_integer, values))),
    }
)


def _unknown_function(name: str, values: list[Value]) -> Value:
    """A fixed arbitrary value for each argument: equal arguments, however written, give equal values."""
    key = name + "|".join(mp.nstr(inexact(value), 12) for value in values)
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return Fraction(int.from_bytes(digest, "big"), 1 << 30) + Fraction(1, 3)


def _fold(node: n.Fold, env: Env) -> Value:
    limit = MAX_FOLD if not n.contains(node.body, n.Fold) else MAX_NESTED_FOLD
    low, high = _integer(evaluate(node.low, env)), _integer(evaluate(node.high, env))
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
