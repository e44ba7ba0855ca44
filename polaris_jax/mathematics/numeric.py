"""Equality of two expressions, by value: exact for rational numbers, else at two precisions and at many points.

Two analytic expressions that agree to 100 digits at points chosen without regard to them are equal; there is nothing
to simplify, so nothing explodes.
"""

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from mpmath import mp, mpf

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.arithmetic import NeedsPrecision, NotANumber, TooLarge, Value, inexact
from polaris_jax.mathematics.evaluate import Env, evaluate

LOW_DPS, HIGH_DPS, MAX_DPS = 40, 120, 2000
_PIECEWISE = frozenset(["floor", "ceil", "abs", "max", "min", "mod", "gcd", "lcm", "round"])
_OF_INTEGERS = frozenset(["floor", "ceil", "binom", "factorial", "factorial2", "mod", "gcd", "lcm"])
_INTEGER_NAMES = frozenset("ijklmnpqrKLMN")


def same_value(a: n.Node, b: n.Node, *, degrees: bool = False) -> bool:
    """Whether two expressions have the same free symbols and the same value wherever both are defined.

    A bare log may be the natural or the decimal one, the same in both. Raises TooLarge or NotANumber where an
    expression has no value that can be compared.
    """
    symbols = n.free_symbols(a)
    if symbols != n.free_symbols(b):
        return False
    names = sorted(name for name in symbols if not name.endswith("()"))
    bases = (None, 10) if _has_call(a, b, {"log"}) else (None,)
    return any(_same_everywhere(a, b, names, base, degrees) for base in bases)


def _same_everywhere(a: n.Node, b: n.Node, names: list[str], log_base: int | None, degrees: bool) -> bool:
    def agree(points: list[dict[str, Value]]) -> bool:
        return _agree(a, b, [Env(point, log_base, degrees) for point in points])

    if not names:
        return _equal_at(a, b, Env({}, log_base, degrees))
    many = _has_call(a, b, _PIECEWISE)
    if agree(_points(names, 40 if many else 4, positive=True)):
        return agree(_points(names, 40 if many else 4, positive=False)) or (not many and _has_roots(a, b))
    return _about_integers(a, b, names) and agree(_integer_points(names))


def _agree(a: n.Node, b: n.Node, envs: list[Env]) -> bool:
    """Whether a and b are equal at every point where they are defined, and at some point at all."""
    compared = 0
    for env in envs:
        try:
            if not _equal_at(a, b, env):
                return False
            compared += 1
        except (NotANumber, TooLarge):
            if _defined(a, env) != _defined(b, env):
                return False
    return compared > 0


def _defined(node: n.Node, env: Env) -> bool:
    try:
        _at(LOW_DPS, lambda: evaluate(node, env))
    except NotANumber:
        return False
    except TooLarge:
        return True
    return True


def _equal_at(a: n.Node, b: n.Node, env: Env) -> bool:
    """Equality at one point: a rough look first; then a finer one must show that the gap is only rounding."""
    (scale, rough), dps = _with_precision(LOW_DPS, lambda: _scale_and_gap(a, b, env))
    if isinstance(rough, Fraction):
        return rough == 0
    with mp.workdps(dps):
        if rough > scale * mpf(10) ** -8 and rough > mpf(10) ** -15:
            return False
    (scale, fine), dps = _with_precision(HIGH_DPS, lambda: _scale_and_gap(a, b, env))
    with mp.workdps(dps):
        return fine <= scale * mpf(10) ** (40 - dps) or fine < rough * mpf(10) ** -60


def _scale_and_gap(a: n.Node, b: n.Node, env: Env) -> tuple[Value, Value]:
    """The larger size, and the distance, of the two values; both exact where both values are."""
    first, second = evaluate(a, env), evaluate(b, env)
    if not (isinstance(first, Fraction) and isinstance(second, Fraction)):
        first, second = inexact(first), inexact(second)
    return max(abs(first), abs(second)), abs(first - second)


def approximate(node: n.Node) -> Value:
    """The value of a constant to 30 digits or more. Raises NotANumber or TooLarge."""
    return _at(30, lambda: inexact(evaluate(node, Env())))


def _at(dps: int, compute: Callable[[], Value]) -> Value:
    return _with_precision(dps, compute)[0]


def _with_precision(dps: int, compute: Callable[[], Any]) -> tuple[Any, int]:
    """The value at this precision, or at a higher one where a term or digits would otherwise be lost; and which."""
    while dps <= MAX_DPS:
        with mp.workdps(dps):
            try:
                return compute(), dps
            except NeedsPrecision as need:
                dps = max(dps + 40, dps + need.digits)
    raise TooLarge("precision")


def _points(names: list[str], count: int, *, positive: bool) -> list[dict[str, Value]]:
    """Points with dyadic coordinates, from near zero to some hundreds, the same ones for every case."""
    rng = random.Random(20250624)
    return [
        {name: _coordinate(rng, 4 if count <= 4 else (4, 30, 700)[i % 3], positive) for name in names}
        for i in range(count)
    ]


def _coordinate(rng: random.Random, size: int, positive: bool) -> Fraction:
    value = Fraction(rng.randrange(1, size * 256) * 2 + 1, 512)
    return value if positive or rng.random() < 0.3 else -value


def _integer_points(names: list[str]) -> list[dict[str, Value]]:
    rng = random.Random(20250624)
    small = [dict.fromkeys(names, Fraction(k)) for k in range(1, 3)] if len(names) == 1 else []
    return small + [{name: Fraction(rng.randrange(1, (12, 60, 500)[i % 3])) for name in names} for i in range(40)]


def _about_integers(a: n.Node, b: n.Node, names: list[str]) -> bool:
    """Whether the symbols can only be meant as integers, so that forms equal on the integers are equal."""
    if not all(name[:1] in _INTEGER_NAMES for name in names):
        return False
    return _has_call(a, b, _OF_INTEGERS) or any(_alternates(part) for side in (a, b) for part in n.walk(side))


def _alternates(node: n.Node) -> bool:
    """(-1)^n and the like."""
    if isinstance(node, n.Fold):
        return True
    if not isinstance(node, n.Call) or node.name != "pow":
        return False
    base = node.args[0]
    return isinstance(base, n.Call) and base.name == "neg" and not n.free_symbols(base)


def _has_roots(a: n.Node, b: n.Node) -> bool:
    """Whether symbols stand under roots or logs, where by convention they are positive: sqrt(r^2) is r."""
    return any(
        isinstance(part, n.Call)
        and (
            part.name in ("sqrt", "root", "log", "ln", "lg")
            or (part.name == "pow" and n.contains(part.args[1], n.Call))
        )
        for side in (a, b)
        for part in n.walk(side)
    )


def _has_call(a: n.Node, b: n.Node, names: frozenset[str] | set[str]) -> bool:
    return any(isinstance(part, n.Call) and part.name in names for side in (a, b) for part in n.walk(side))


def proportion(a: n.Node, b: n.Node) -> float | None:
    """The constant, not zero, that a is of b at every point; None if there is none, or nothing to vary."""
    names = n.free_symbols(a)
    if not names or names != n.free_symbols(b):
        return None
    symbols = sorted(name for name in names if not name.endswith("()"))
    if not symbols:  # f(2) alone does not vary
        return None
    points = _points(symbols, 4, positive=True) + _points(symbols, 40, positive=False)[:8]
    ratios = [ratio for point in points if (ratio := _ratio(a, b, Env(point))) is not None]
    if len(ratios) < 3:
        return None
    first = ratios[0]
    with mp.workdps(LOW_DPS):
        constant = all(abs(ratio - first) <= abs(first) * mpf(10) ** -25 for ratio in ratios)
    if not constant or first == 0 or not mp.isfinite(first) or mp.im(first) != 0:
        return None
    return float(mp.re(first))


def _ratio(a: n.Node, b: n.Node, env: Env) -> Value | None:
    try:
        return _at(LOW_DPS, lambda: _quotient(evaluate(a, env), evaluate(b, env)))
    except (NotANumber, TooLarge):
        return None


def _quotient(first: Value, second: Value) -> Value | None:
    if second == 0:
        return None if first == 0 else mp.inf
    return inexact(first) / inexact(second)
