"""A value written in two random equivalent LaTeX forms verifies; changed, it does not."""

import cmath
import math
import random
from fractions import Fraction

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from polaris_jax.mathematics import Comparison, judge

AT = {"x": 1.37, "y": 0.71, "n": 2.9}

numbers = st.integers(1, 60).map(lambda k: ("int", k))
fractions = st.tuples(st.integers(1, 20), st.integers(2, 20)).map(lambda f: ("frac", *f))
atoms = st.one_of(numbers, fractions, st.just(("pi",)), st.sampled_from("xyn").map(lambda s: ("sym", s)))
trees = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(st.just("add"), inner, inner),
        st.tuples(st.just("sub"), inner, inner),
        st.tuples(st.just("mul"), inner, inner),
        st.tuples(st.just("div"), inner, inner),
        st.tuples(st.just("pow"), inner, st.integers(2, 4)),
        st.tuples(st.just("sqrt"), inner),
        st.tuples(st.sampled_from(["sin", "cos", "ln"]), inner),
    ),
    max_leaves=6,
)


def value(tree):
    """The tree's value at one point, by Python's own arithmetic."""
    kind, *parts = tree
    if kind in ("int", "frac"):
        return parts[0] if kind == "int" else parts[0] / parts[1]
    if kind == "pi":
        return math.pi
    if kind == "sym":
        return AT[parts[0]]
    if kind == "pow":
        return value(parts[0]) ** parts[1]
    if kind in ("sqrt", "sin", "cos", "ln"):
        return {"sqrt": cmath.sqrt, "sin": cmath.sin, "cos": cmath.cos, "ln": cmath.log}[kind](value(parts[0]))
    left, right = map(value, parts)
    return {
        "add": lambda: left + right,
        "sub": lambda: left - right,
        "mul": lambda: left * right,
        "div": lambda: left / right,
    }[kind]()


def written(tree, rng):
    """One of many ways to write the tree."""
    wraps = ["{}", "{}", "{}", "\\left({}\\right)", "({})\\cdot 1", "0+{}", "\\,{}\\,", "\\displaystyle {}"]
    return rng.choice(wraps).format(plain(tree, rng))


def group(tree, rng):
    return rng.choice(["({})", "\\left({}\\right)", "[{}]", "{{({})}}"]).format(plain(tree, rng))


def plain(tree, rng):
    kind, *parts = tree
    pick = rng.choice
    if kind == "int":
        k = parts[0]
        forms = [f"{k}", f"{k}.0", f"\\frac{{{2 * k}}}{{2}}", f"({k - 1}+1)", f"\\sqrt{{{k * k}}}", f"\\text{{{k}}}"]
        return pick(forms)
    if kind == "frac":
        a, b = parts
        whole, rest = divmod(a, b)
        forms = [f"\\frac{{{a}}}{{{b}}}", f"\\dfrac{{{3 * a}}}{{{3 * b}}}", f"({a}/{b})", f"({a}\\div {b})"]
        if whole and rest and math.gcd(rest, b) == 1:
            forms.append(f"\\left({whole}\\frac{{{rest}}}{{{b}}}\\right)")
        return pick(forms)
    if kind == "pi":
        return pick(["\\pi", "\\pi ", "{\\pi}", "\\frac{2\\pi}{2}"])
    if kind == "sym":
        return pick([parts[0], f"{{{parts[0]}}}", f"\\mathit{{{parts[0]}}}"])
    if kind == "pow":
        base = group(parts[0], rng)
        return pick([f"{base}^{{{parts[1]}}}", f"{base}^{parts[1]}", f"{base}^{{{parts[1] - 1}}}\\cdot {base}"])
    if kind == "sqrt":
        return pick([f"\\sqrt{{{plain(parts[0], rng)}}}", f"{group(parts[0], rng)}^{{1/2}}"])
    if kind in ("sin", "cos", "ln"):
        return pick([f"\\{kind}({plain(parts[0], rng)})", f"\\{kind}\\left({plain(parts[0], rng)}\\right)"])
    left, right = (group(part, rng) for part in parts)
    if kind == "add":
        return pick([f"{left}+{right}", f"{right}+{left}", f"{left} - (-{right})"])
    if kind == "sub":
        return pick([f"{left}-{right}", f"-{right}+{left}", f"-({right}-{left})"])
    if kind == "mul":
        return pick([f"{left}{right}", f"{right}\\cdot {left}", f"{left}\\times{right}", f"{left}*{right}"])
    quotients = [
        f"\\frac{{{left}}}{{{right}}}",
        f"{left}/{right}",
        f"{left}\\cdot{right}^{{-1}}",
        f"{left}\\div{right}",
    ]
    return pick(quotients)


def changed(tree, rng):
    """The tree with one integer in it raised by one, or None if it has none."""
    if tree[0] == "int":
        return ("int", tree[1] + 1)
    if tree[0] == "frac":
        return ("frac", tree[1] + 1, tree[2])
    places = [i for i, part in enumerate(tree) if isinstance(part, tuple)]
    rng.shuffle(places)
    for i in places:
        part = changed(tree[i], rng)
        if part is not None:
            return (*tree[:i], part, *tree[i + 1 :])
    return None


def usable(tree):
    """Whether the tree has a value that double precision can tell from another."""
    try:
        return 1e-6 < abs(value(tree)) < 1e9
    except (ArithmeticError, ValueError):
        return False


SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(tree=trees, seed=st.integers(0, 2**32))
def test_two_forms_of_one_value_are_equal(tree, seed):
    assume(usable(tree))
    rng = random.Random(seed)
    gold, box = written(tree, rng), written(tree, rng)
    assert judge(box, [gold]) is Comparison.EQUAL, (gold, box)


@SETTINGS
@given(tree=trees, seed=st.integers(0, 2**32))
def test_a_changed_value_is_not_equal(tree, seed):
    rng = random.Random(seed)
    other = changed(tree, rng)
    assume(other is not None and usable(tree) and usable(other))
    assume(abs(value(tree) - value(other)) > 1e-9 * abs(value(tree)))
    gold, box = written(tree, rng), written(other, rng)
    assert judge(box, [gold]) is not Comparison.EQUAL, (gold, box)


@SETTINGS
@given(top=st.integers(-500, 500), bottom=st.integers(1, 400), places=st.integers(1, 12))
def test_a_fraction_equals_its_decimal_only_if_that_is_exact(top, bottom, places):
    fraction = Fraction(top, bottom)
    decimal = f"{top / bottom:.{places}f}"
    expected = Fraction(decimal) == fraction
    assert (judge(decimal, [f"\\frac{{{top}}}{{{bottom}}}"]) is Comparison.EQUAL) == expected


@SETTINGS
@given(items=st.lists(st.integers(-50, 50), min_size=2, max_size=6, unique=True), seed=st.integers(0, 2**32))
def test_lists_are_equal_in_any_order_and_only_whole(items, seed):
    rng = random.Random(seed)
    gold = ",".join(map(str, items))
    shuffled = rng.sample(items, len(items))
    form = rng.choice(["{}", "\\{{{}\\}}", "\\left\\{{{}\\right\\}}", "x={}"])
    assert judge(form.format(", ".join(map(str, shuffled))), [gold]) is Comparison.EQUAL
    assert judge(form.format(", ".join(map(str, shuffled[1:]))), [gold]) is not Comparison.EQUAL
    assert judge(f"({gold})", [gold]) is not Comparison.EQUAL
