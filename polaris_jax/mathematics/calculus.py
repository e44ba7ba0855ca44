r"""Reads integrals, limits, derivatives, and sums without an upper bound; only where values have not decided.

A differential such as dx ends an integrand; `with_differentials` finds them before anything is read.
"""

import re

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.cursor import Cursor
from polaris_jax.mathematics.tokens import Token, Unreadable

INFINITY = n.Const("inf")
_DIFFERENTIALS = re.compile(r"(?<![\\A-Za-z])([a-z]*?)((?:d[a-z])+)(?![A-Za-z])")
_FUNCTION = re.compile(r"^(sin|cos|tan|ln|log|exp)(?=[a-z])")


def with_apart_differentials(text: str) -> str:
    """The text with space before each differential of a run of letters such as xydxdy."""
    if "\\int" not in text:
        return text

    def apart(match: re.Match) -> str:
        factors = _FUNCTION.sub(r"\\\1 ", match.group(1))
        if not factors.startswith("\\"):
            factors = " ".join(factors)
        return f"{factors} {' '.join(re.findall('..', match.group(2)))}"

    return _DIFFERENTIALS.sub(apart, text)


def with_differentials(tokens: list[Token]) -> list[Token]:
    r"""Tokens with one "diff" in place of the d and x that end an integrand, behind the fraction in \frac{dx}{x}."""
    if not any(token.text == "int" for token in tokens):
        return tokens
    found: list[Token] = []
    open_integrals: list[int] = []  # depths of the brackets in which they stand
    pending: dict[int, str] = {}  # index of a fraction's last token: the variable of the differential in its numerator
    depth, at, skipped = 0, 0, set[int]()
    while at < len(tokens):
        token = tokens[at]
        depth += {"open": 1, "close": -1}.get(token.kind, 0)
        if token.kind == "cmd" and token.text == "int":
            open_integrals.append(depth)
        elif open_integrals and depth == open_integrals[-1] and _is_differential(tokens, at):
            found.append(Token("diff", tokens[at + 1].text))
            open_integrals.pop()
            at += 2
            continue
        elif open_integrals and depth == open_integrals[-1] and (place := _in_numerator(tokens, at)):
            start, end = place
            skipped |= {start, start + 1}
            pending[end] = tokens[start + 1].text
            if start == at + 2:
                tokens = [*tokens[:start], Token("num", "1"), *tokens[start + 1 :]]
                skipped.discard(start)
        if at not in skipped:
            found.append(token)
        if at in pending:
            found.append(Token("diff", pending[at]))
            open_integrals.pop()
        at += 1
    return found


def _is_differential(tokens: list[Token], at: int) -> bool:
    return tokens[at][:2] == ("sym", "d") and at + 1 < len(tokens) and tokens[at + 1].kind == "sym"


def _in_numerator(tokens: list[Token], at: int) -> tuple[int, int] | None:
    """Where a differential ends the numerator of the fraction that starts here, and where the fraction ends."""
    if tokens[at].text != "frac" or tokens[at + 1 : at + 2] == [] or tokens[at + 1].text != "{":
        return None
    close = _close(tokens, at + 1)
    if close < at + 4 or not _is_differential(tokens, close - 2):
        return None
    end = _close(tokens, close + 1) if close + 1 < len(tokens) and tokens[close + 1].kind == "open" else close + 1
    return (close - 2, end) if end < len(tokens) else None


def _close(tokens: list[Token], start: int) -> int:
    depth = 0
    for at in range(start, len(tokens)):
        depth += {"open": 1, "close": -1}.get(tokens[at].kind, 0)
        if depth == 0:
            return at
    raise Unreadable("unbalanced brackets")


class CalculusReader(Cursor):
    """Needs the methods that read sums, terms and arguments, which its subclasses have."""

    def integral(self) -> n.Node:
        bounds: dict[str, n.Node] = {}
        while self.is_op("_", "^"):
            mark = self.next().text
            bounds[mark] = self.argument()
        body = n.ONE if self.token.kind == "diff" else self.sum()
        if len(bounds) == 1:
            raise Unreadable("integral with one bound")
        return n.Integral(self.expect("diff").text, bounds.get("_"), bounds.get("^"), body)

    def limit(self) -> n.Node:
        self.expect("op", "_")
        self.expect("open", "{")
        name = self.expect("sym").text
        self.expect("rel", "->")
        side = self.side_of_point()
        point = self.sum()
        self.expect("close", "}")
        return n.Limit(name, point, side, self.sum())

    def side_of_point(self) -> str:
        r"""The sign in x \to 0^+, which is taken out; "" where there is none."""
        raised = [at for at in range(self.at, len(self.tokens) - 1) if self.tokens[at].text == "^"]
        for at in raised:
            braced = self.tokens[at + 1].text == "{"
            marks = [token.text for token in self.tokens[at + 1 + braced : at + 3 + 2 * braced]]
            if marks[:1] in (["+"], ["-"]) and marks[1:] == ["}", "}"][: 1 + braced]:
                del self.tokens[at : at + 2 + 2 * braced]
                return marks[0]
        return ""

    def bounds_of_fold(self, start: n.Node, high: n.Node | None) -> tuple[str, n.Node, n.Node]:
        r"""Variable and bounds of \sum_{k=1}^n, \sum_{k \ge 1} and \sum_{1 \le k \le n}."""
        match start, high:
            case n.Relation(("=",), (n.Sym() | n.Const() as variable, low)), n.Node():
                return variable.name, low, high
            case n.Relation((">=",), (n.Sym(name), low)), None:
                return name, low, INFINITY
            case n.Relation(("<=", "<="), (low, n.Sym(name), high)), None:
                return name, low, high
        raise Unreadable("sum or product without a start")

    def derivative(self, top: n.Node, bottom: n.Node) -> n.Node | None:
        r"""The derivative that \frac{d}{dx} or \frac{\partial^2}{\partial x \partial y} takes; None for a fraction."""
        factors = _factors(top)
        mark, order = _power(factors[0])
        variables = _differentials(bottom, mark)
        if mark not in (n.Sym("d"), n.Sym("partial")) or not variables or order != sum(variables.values()):
            return None
        if len(factors) > 1:
            body = factors[1]
            for factor in factors[2:]:
                body = n.Call("mul", (body, factor))
        else:
            body = self.term()
        for name, times in variables.items():
            body = n.Derivative(name, times, body)
        return body


def _factors(node: n.Node) -> list[n.Node]:
    if isinstance(node, n.Call) and node.name == "mul":
        return [*_factors(node.args[0]), *_factors(node.args[1])]
    return [node]


def _power(node: n.Node) -> tuple[n.Node, int]:
    """Base and exponent, 0 where that is no small whole number."""
    if not isinstance(node, n.Call) or node.name != "pow":
        return node, 1
    base, exponent = node.args
    whole = isinstance(exponent, n.Num) and exponent.value.denominator == 1 and 0 < exponent.value < 100
    return base, int(exponent.value) if whole else 0


def _differentials(bottom: n.Node, mark: n.Node) -> dict[str, int]:
    r"""How often each variable is differentiated by in dx, dx^2 or \partial x \partial y; {} for other trees."""
    factors, orders = _factors(bottom), dict[str, int]()
    for sign, factor in zip(factors[::2], factors[1::2], strict=False):
        variable, order = _power(factor)
        if sign != mark or not isinstance(variable, n.Sym) or not order:
            return {}
        orders[variable.name] = orders.get(variable.name, 0) + order
    return orders if len(factors) % 2 == 0 else {}
