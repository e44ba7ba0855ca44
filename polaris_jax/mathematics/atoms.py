"""Small pieces of a tree: numbers, marked bases, primes, mixed numbers."""

import re
from fractions import Fraction

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.tokens import Unreadable

MAX_DIGITS = 4000
MAX_TEN_POWER = 10_000
_BASE_NAMES = dict(two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9, ten=10, twelve=12, sixteen=16)


def number(text: str) -> n.Num:
    """An exact number from digits, a decimal, 1.5e-3, or numerator/denominator. Raises Unreadable if too long."""
    if len(text) > MAX_DIGITS:
        raise Unreadable("too many digits")
    power = re.search(r"[eE]([+-]?\d+)$", text)
    if power and abs(int(power.group(1))) > MAX_TEN_POWER:
        raise Unreadable("power of ten too large")
    return n.Num(Fraction(text), text)


def in_base(literal: n.Num, base_text: str) -> n.Num:
    """The number whose digits are read in the base that its subscript names. Raises Unreadable."""
    base_text = base_text.strip("()")
    base = int(base_text) if base_text.isdigit() and len(base_text) < 3 else _BASE_NAMES.get(base_text.lower(), 0)
    if not literal.digits.isdigit() or not 2 <= base <= 36 or any(int(digit) >= base for digit in literal.digits):
        raise Unreadable("not a number in a base")
    return n.Num(Fraction(int(literal.digits, base)))


def primed(value: n.Node, marks: str) -> n.Node:
    """y' is a symbol of its own; 3' and 3'' are minutes and seconds of arc or feet and inches.

    Raises Unreadable for (x^2)', which is a derivative.
    """
    if isinstance(value, n.Sym):
        return n.Sym(value.name + marks)
    if n.free_symbols(value):
        raise Unreadable("prime behind an expression")
    return n.Quantity(value, "prime" * len(marks))


def negated(value: n.Node) -> n.Node:
    """Minus the value; the sign goes inside a percentage, so that -28% is minus 28 of them."""
    if isinstance(value, (n.Percent, n.Degree)):
        return type(value)(negated(value.body))
    return n.Call("neg", (value,))


def is_proper(fraction: n.Node) -> bool:
    """Whether this is a fraction of two written integers smaller than one."""
    if not isinstance(fraction, n.Call) or fraction.name != "div":
        return False
    top, bottom = fraction.args
    if not (isinstance(top, n.Num) and isinstance(bottom, n.Num)):
        return False
    return top.digits.isdigit() and bottom.digits.isdigit() and 0 < top.value < bottom.value


def is_set(node: n.Node | None) -> bool:
    """Whether this is a set as such: a named one, or one in braces."""
    if isinstance(node, n.Const):
        return node.name[0] in "RZNQC"
    return isinstance(node, (n.Builder, n.SetOp)) or (isinstance(node, n.Seq) and node.left == "set")


def derivative(top: n.Node, bottom: n.Node) -> n.Node | None:
    """The symbol that a fraction such as dy/dx or d^2y/dx^2 stands for, or None for any other fraction."""
    match top, bottom:
        case n.Call("mul", (over, n.Sym() | n.Apply() as function)), n.Call("mul", (n.Sym(under), variable)):
            order = n.ONE
            if isinstance(over, n.Call) and over.name == "pow" and isinstance(variable, n.Call):
                (over, order), (variable, power) = over.args, variable.args
                if order != power:
                    return None
            if over != n.Sym(under) or under not in ("d", "partial") or not isinstance(variable, n.Sym):
                return None
            name = function.name if isinstance(function, n.Sym) else f"{function.name}()"
            return n.Sym(f"D({name},{variable.name},{order.value if isinstance(order, n.Num) else order})")
    return None
