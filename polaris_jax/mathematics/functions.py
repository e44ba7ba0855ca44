"""The functions that an answer may call, on exact or inexact numbers, each with its domain and its bounds."""

import math
from collections.abc import Callable
from fractions import Fraction

from mpmath import libmp, mp, mpc, mpf

from polaris_jax.mathematics.arithmetic import (
    NotANumber,
    TooLarge,
    Value,
    add,
    divide,
    inexact,
    inexact_power,
    multiply,
    power,
    resolved,
    settled,
    without_noise,
)
from polaris_jax.mathematics.symbols import listed

MAX_FACTORIAL = 10_000


def _real(value: Value) -> Fraction | mpf:
    if isinstance(value, mpc):
        if abs(value.imag) > abs(value) * mpf(10) ** (-mp.dps // 2):
            raise NotANumber("complex where a real number is needed")
        return value.real
    return value


def integer(value: Value) -> int:
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


def log(value: Value, base: Value | None = None) -> Value:
    if value == 0 or base in (0, 1):
        raise NotANumber("log of zero, or to base 0 or 1")
    result = mp.log(inexact(value))
    return settled(result if base is None else result / mp.log(inexact(base)))


def _exp(value: Value) -> Value:
    return inexact_power(+mp.e, inexact(value))


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
    return settled(mp.gamma(inexact(value)))


def _double_factorial(value: Value) -> Value:
    count = integer(value)
    if not 0 <= count <= MAX_FACTORIAL:
        raise TooLarge("double factorial")
    return Fraction(math.prod(range(count, 0, -2)))


def _binomial(top: Value, bottom: Value) -> Value:
    exact = isinstance(top, Fraction) and isinstance(bottom, Fraction) and top.denominator == bottom.denominator == 1
    if exact and 0 <= top <= MAX_FACTORIAL:
        return Fraction(math.comb(int(top), int(bottom)) if bottom >= 0 else 0)
    if max(mp.mag(inexact(top)), mp.mag(inexact(bottom))) > 16:
        raise TooLarge("binomial")
    return settled(mp.binomial(inexact(top), inexact(bottom)))


def _modulo(value: Value, modulus: Value) -> Value:
    if modulus == 0:
        raise NotANumber("mod 0")
    return Fraction(integer(value) % integer(modulus))


def _through(function: Callable) -> Callable[[Value], Value]:
    """An mpmath function of one argument on our values."""

    def apply(value: Value) -> Value:
        if mp.mag(inexact(value)) > 64 if value != 0 else False:
            raise TooLarge("argument")
        try:
            return settled(function(resolved(inexact(value))))
        except (ZeroDivisionError, ValueError, OverflowError, libmp.NoConvergence) as error:
            raise NotANumber("function outside its domain") from error

    return apply


def _without_pole(function: Callable) -> Callable:
    """A trigonometric function that has no value where only rounding keeps it finite, such as tan(pi/2)."""

    def apply(argument: mpf | mpc) -> mpf | mpc:
        result = without_noise(function(argument), argument)
        if result != 0 and mp.mag(result) > mp.prec // 2:
            raise NotANumber("pole")
        return result

    return apply


TRIGONOMETRIC = frozenset(listed("sin cos tan cot sec csc cis"))
_MPMATH = listed("sin cos tan cot sec csc")
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
        "log": log,
        "ln": log,
        "lg": lambda a: log(a, Fraction(10)),
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
        "gcd": lambda *values: Fraction(math.gcd(*map(integer, values))),
        "lcm": lambda *values: Fraction(math.lcm(*map(integer, values))),
    }
)
