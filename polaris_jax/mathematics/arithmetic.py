"""Numbers, exact Fractions where they can be, else mpmath's at the working precision; every result is bounded."""

import math
from fractions import Fraction

from mpmath import mp, mpc, mpf

Value = Fraction | mpf | mpc
MAX_BITS = 200_000  # of an exact number
MAX_MAGNITUDE = 1 << 24  # of log2 of an inexact one


class NotANumber(Exception):
    """The tree has no value: a division by zero, an infinity, a list."""


class TooLarge(Exception):
    """The value exists but is not worth its cost."""


class NeedsPrecision(Exception):
    """A sum of this many decimal digits between its terms would lose the smaller one."""

    def __init__(self, digits: int):
        super().__init__(digits)
        self.digits = digits


def without_noise(result: mpf | mpc, scale: mpf | mpc) -> mpf | mpc:
    """Zero where the result is only rounding left over from terms of this size: sin(pi), sqrt(2)^2 - 2."""
    if result != 0 and mp.mag(result) < mp.mag(scale) - mp.prec + 33:
        return mpf(0)
    return result


def spare_digits() -> int:
    """Digits that one number may differ from another by and still be told apart at the working precision."""
    return max(mp.dps - 45, 20)


def inexact(value: Value) -> mpf | mpc:
    """The value as an mpmath number. Raises NeedsPrecision where the working precision cannot hold its digits."""
    if isinstance(value, Fraction):
        digits = int(0.302 * max(value.numerator.bit_length(), value.denominator.bit_length()))
        if digits > spare_digits():
            raise NeedsPrecision(digits)
        return mpf(value.numerator) / value.denominator
    return value


def _bounded(value: Fraction) -> Value:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        return inexact(value)
    return value


def settled(value: mpf | mpc) -> mpf | mpc:
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
        if digits > spare_digits():
            raise NeedsPrecision(digits)
    return settled(without_noise(a + b, a))


def multiply(a: Value, b: Value) -> Value:
    """a * b."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a * b)
    return settled(inexact(a) * inexact(b))


def divide(a: Value, b: Value) -> Value:
    """a / b."""
    if b == 0:
        raise NotANumber("division by zero")
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a / b)
    return settled(inexact(a) / inexact(b))


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
    return inexact_power(inexact(a), inexact(b))


def _rational_power(a: Fraction, b: Fraction) -> Value:
    if b.denominator > 1:
        if b.denominator % 2 and a < 0:
            sign = -1 if b.numerator % 2 else 1
            return multiply(Fraction(sign), _rational_power(-a, b))
        root = _exact_root(a, b.denominator) if a > 0 and b.denominator < 64 else None
        if root is None:
            return inexact_power(inexact(a), inexact(b))
        a, b = root, Fraction(b.numerator)
    if abs(a) == 1:
        return a if b % 2 else Fraction(1)
    if abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) > MAX_BITS:
        return inexact_power(inexact(a), inexact(b))
    return a ** int(b)


def resolved(argument: mpf | mpc) -> mpf | mpc:
    """The argument of a function that differs from a constant by about its square: cos(1e-50) is not 1."""
    digits = int(-0.603 * mp.mag(argument)) if argument != 0 else 0
    if digits > spare_digits():
        raise NeedsPrecision(digits + 45)
    return argument


def inexact_power(a: mpf | mpc, b: mpf | mpc) -> mpf | mpc:
    b = resolved(b)
    if b != 0 and a != 1 and mp.mag(b) + math.log2(abs(mp.mag(a)) + 2) > 26:
        raise TooLarge("power")
    if isinstance(b, mpc) and mp.mag(b) > 26:
        raise TooLarge("power")
    return settled(mp.power(a, b))


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
