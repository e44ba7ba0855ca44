"""Equality of two expressions, by value: exact for rational numbers, else at two precisions and at many points.

Two analytic expressions that agree to 100 digits at points chosen without regard to them are equal; there is nothing
to simplify, so nothing explodes.
"""

import random
from collections.abc import Callable
from fractions import Fraction

from mpmath import mp, mpf

from polaris_jax.rewards import nodes as n
from polaris_jax.rewards.evaluate import Env, NeedsPrecision, NotANumber, TooLarge, Value, evaluate, inexact

LOW_DPS, HIGH_DPS, MAX_DPS = 40, 120, 1200
_PIECEWISE = frozenset(["floor", "ceil", "abs", "max", "min", "mod", "gcd", "lcm", "round"])
_OF_INTEGERS = frozenset(["floor", "ceil", "binom", "factorial", "factorial2", "mod", "gcd", "lcm", "cos", "sin"])
_INTEGER_NAMES = frozenset("abcdijklmnpqrstNMKLT")


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
    """Equality at one point: a rough look first, then both precisions must agree that the difference is rounding."""
    rough_a, rough_b = _at(LOW_DPS, lambda: evaluate(a, env)), _at(LOW_DPS, lambda: evaluate(b, env))
    if isinstance(rough_a, Fraction) and isinstance(rough_b, Fraction):
        return rough_a == rough_b
    with mp.workdps(LOW_DPS):
        scale, rough = _scale_and_gap(rough_a, rough_b)
        if rough > scale * mpf(10) ** -8:
            return _cancels(a, b, env, rough)
    return _close_or_vanishing(a, b, env, rough)


def _cancels(a: n.Node, b: n.Node, env: Env, rough: mpf) -> bool:
    """Whether a relative gap that is large is so only because both values are rounding noise around zero."""
    if rough > mpf(10) ** -15:
        return False
    return _close_or_vanishing(a, b, env, rough)


def _close_or_vanishing(a: n.Node, b: n.Node, env: Env, rough: mpf) -> bool:
    fine_a, fine_b = _at(HIGH_DPS, lambda: evaluate(a, env)), _at(HIGH_DPS, lambda: evaluate(b, env))
    with mp.workdps(HIGH_DPS):
        scale, fine = _scale_and_gap(fine_a, fine_b)
        return fine <= scale * mpf(10) ** -80 or fine < rough * mpf(10) ** -60


def _scale_and_gap(a: Value, b: Value) -> tuple[mpf, mpf]:
    a, b = inexact(a), inexact(b)
    return max(abs(a), abs(b)), abs(a - b)


def _at(dps: int, compute: Callable[[], Value]) -> Value:
    """The value at this precision, or at a higher one where a sum would otherwise lose a term."""
    while True:
        with mp.workdps(dps):
            try:
                return compute()
            except NeedsPrecision as need:
                dps = max(2 * dps, dps + need.digits)
        if dps > MAX_DPS:
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
        first, second = _at(LOW_DPS, lambda: evaluate(a, env)), _at(LOW_DPS, lambda: evaluate(b, env))
    except (NotANumber, TooLarge):
        return None
    if second == 0:
        return None if first == 0 else mp.inf
    with mp.workdps(LOW_DPS):
        return inexact(first) / inexact(second)
