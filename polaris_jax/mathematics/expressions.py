r"""Reads sums, products, powers and what follows a factor; `Reader` adds lists, relations and units."""

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.atoms import in_base, is_proper, is_set, negated, number, primed
from polaris_jax.mathematics.primaries import PrimaryReader
from polaris_jax.mathematics.tokens import MAX_DEPTH, Unreadable

FACTOR_STARTS = frozenset(["num", "sym", "const", "func", "cmd", "open", "accent", "prefix", "begin", "currency"])
_ENDS = frozenset(["colon", "mid", "sep", "close", "bar", "row"])
_MARKS = frozenset(["deg", "'", "+", "-", "*"])  # superscripts that are no exponents
_FUNCTIONS = frozenset("fgh")


def _is_minus_one(node: n.Node) -> bool:
    return isinstance(node, n.Call) and node.name == "neg" and node.args[0] in (n.ONE, n.Num(n.ONE.value, "1"))


class ExpressionReader(PrimaryReader):
    """Needs the method that tells whether a unit follows, which its subclass has."""

    # sets, sums, products

    def sets(self) -> n.Node:
        value = self.sum()
        while self.is_op("union", "intersection", "minus") or self.is_plain_union(value):
            op = "union" if self.token.kind == "sym" else self.token.text
            self.next()
            value = n.SetOp(op, value, self.sum())
        return value

    def is_plain_union(self, value: n.Node) -> bool:
        """Whether the letter U stands between two sets."""
        return self.token.text == "U" and isinstance(value, n.Seq) and self.peek().kind == "open"

    def sum(self) -> n.Node:
        value: n.Node | None = None
        if not self.is_op("+", "-", "pm", "mp"):
            value = self.term()
        while self.is_op("+", "-", "pm", "mp"):
            op = self.next().text
            term = self.term()
            if op in ("pm", "mp"):
                value = n.PlusMinus(value or n.ZERO, term, 1 if op == "pm" else -1)
            elif op == "-" and is_set(value) and is_set(term):
                value = n.SetOp("minus", value, term)
            else:
                term = negated(term) if op == "-" else term
                value = n.Call("add", (value, term)) if value else term
        return value

    def term(self) -> n.Node:
        value = self.signed_power()
        while not isinstance(value, n.Seq):
            if self.is_op("*", "/", "mod"):
                name = {"*": "mul", "/": "div", "mod": "mod"}[self.next().text]
                value = n.Call(name, (value, self.letters() if name == "div" else self.signed_power()))
            elif self.starts_factor():
                value = self.implicit(value)
            else:
                break
        return value

    def letters(self) -> n.Node:
        """A divisor: one factor, or all the letters that stand together, where they are read so."""
        value = self.signed_power()
        while self.reading.tight_letters and isinstance(value, (n.Sym, n.Call)) and self.letter_touches():
            value = n.Call("mul", (value, self.power()))
        return value

    def letter_touches(self) -> bool:
        r"""Whether a letter follows without space, but for the one that ends a name such as \lambda."""
        before = self.tokens[self.at - 1]
        return self.token.kind == "sym" and (not self.token.gap or (self.token.gap == " " and len(before.text) > 1))

    def starts_factor(self) -> bool:
        token = self.token
        if token.gap == "\\quad":
            return False
        if token.kind == "bar":
            return not self.bars and not self.head and self.closing_bar_ahead()
        if token.kind not in FACTOR_STARTS or token.kind == "currency" or token.text == "pmod":
            return False
        return not (self.unit_ahead() or self.aside_ahead())

    def aside_ahead(self) -> bool:
        """Whether a parenthesis follows that holds nothing but words."""
        at = self.at + 1
        while self.token.text == "(" and at < len(self.tokens) and self.tokens[at].kind == "text":
            at += 1
        return at > self.at + 1 and at < len(self.tokens) and self.tokens[at].text == ")"

    def closing_bar_ahead(self) -> bool:
        return any(token.kind == "bar" for token in self.tokens[self.at + 1 :])

    def implicit(self, value: n.Node) -> n.Node:
        """value times what follows, or a mixed number such as 3\\frac{1}{7} or 3 1/7."""
        whole = self.tokens[self.at - 1]
        literal = whole.kind == "num" and isinstance(value, n.Num)
        if literal and self.token.kind == "num":
            return self.plain_mixed(value)
        start = self.token
        if start.kind != "cmd":
            return n.Call("mul", (value, self.power()))
        factor = self.primary()
        if literal and start.text == "frac" and is_proper(factor) and value.digits.isdigit():
            return self.postfix(n.Call("add", (value, factor)))
        return n.Call("mul", (value, self.postfix(factor)))

    def plain_mixed(self, whole: n.Num) -> n.Node:
        top, slash, bottom = self.token, self.peek(1), self.peek(2)
        if slash.text == "/" and bottom.kind == "num" and whole.digits.isdigit():
            fraction = n.Call("div", (number(top.text), number(bottom.text)))
            if is_proper(fraction):
                self.at += 3
                return self.postfix(n.Call("add", (whole, fraction)))
        raise Unreadable("two numbers side by side")

    def signed_power(self) -> n.Node:
        if self.is_op("-"):
            self.next()
            return negated(self.signed_power())
        if self.is_op("+"):
            self.next()
        return self.power()

    def power(self) -> n.Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        named = self.token.kind in ("sym", "accent")
        value = self.postfix(self.primary(), named)
        self.depth -= 1
        return value

    # what follows a primary

    def postfix(self, value: n.Node, named: bool = False) -> n.Node:
        """The value with its exponents, subscripts and marks; `named` where it may be a function's name."""
        while True:
            if self.is_op("^"):
                self.next()
                value = self.superscript(value)
            elif self.is_op("_"):
                self.next()
                value = self.subscript(value)
            elif self.is_op("!"):
                self.next()
                double = self.is_op("!") and bool(self.next())
                value = n.Call("factorial2" if double else "factorial", (value,))
            elif self.is_op("%"):
                self.next()
                value = n.Percent(value)
            elif self.is_op("deg"):
                self.next()
                value = self.degree(value)
            elif self.is_op("'"):
                value = self.primed(value)
            elif named and isinstance(value, n.Sym) and self.token.text == "(" and self.applies(value.name):
                value = self.application(value.name)
            else:
                return value

    def superscript(self, base: n.Node) -> n.Node:
        mark = self.superscript_mark()
        if mark == "deg":
            return self.degree(base)
        if mark.startswith("'"):
            return primed(base, mark)
        if mark in ("+", "-", "*") and isinstance(base, (n.Sym, n.Const)):
            return type(base)(base.name + mark)
        if mark:
            raise Unreadable("dangling superscript")
        sign = self.is_op("-") and bool(self.next())
        exponent = self.script()
        if exponent == n.Sym("o"):  # a degree sign made by hand
            return self.degree(base)
        exponent = n.Call("neg", (exponent,)) if sign else exponent
        if isinstance(base, n.Sym) and base.name in _FUNCTIONS and self.token.text == "(" and _is_minus_one(exponent):
            return n.Sym(f"{base.name}^{{-1}}")
        return n.Call("pow", (base, exponent))

    def degree(self, value: n.Node) -> n.Node:
        """Degrees of an angle, or of a temperature where C or F ends the item."""
        if self.token.text in ("C", "F") and self.peek().kind in ("eof", "sep", "close", "row"):
            return n.Quantity(value, "deg" + self.next().text)
        return n.Degree(value)

    def superscript_mark(self) -> str:
        r"""The marks of a superscript that is no number, as in ^\circ, ^{\prime\prime}, R^+; "" for an exponent."""
        braced = self.token.text == "{"
        at, marks = self.at + braced, ""
        while at < len(self.tokens) and self.tokens[at].kind == "op" and self.tokens[at].text in _MARKS:
            marks += self.tokens[at].text
            at += 1
            if not braced:
                break
        closed = not braced or (at < len(self.tokens) and self.tokens[at].text == "}")
        ended = at >= len(self.tokens) or self.tokens[at].kind in _ENDS
        if not marks or not closed or (marks in ("+", "-") and not braced and not ended):
            return ""
        self.at = at + braced
        return marks

    def script(self) -> n.Node:
        """An exponent: a group or one token with its own exponent."""
        if self.token.text == "{":
            return self.primary()
        value = self.primary()
        if self.is_op("^"):
            self.next()
            return self.superscript(value)
        return value

    def subscript(self, base: n.Node) -> n.Node:
        if self.reading.calculus and isinstance(base, n.Sym) and (index := self.index()):
            return n.Apply(f"{base.name}_", (index,))
        text = self.subscript_text()
        if isinstance(base, n.Num):
            return in_base(base, text)
        if isinstance(base, (n.Sym, n.Const)):
            return n.Sym(f"{base.name}_{text}")
        raise Unreadable("subscript of an expression")

    def index(self) -> n.Node | None:
        """A subscript that depends on symbols, as in F_{n-k-1}; None for any other, which is left."""
        start = self.at
        try:
            index = self.argument()
            if index == n.Const("i") or (isinstance(index, (n.Sym, n.Call)) and n.free_symbols(index)):
                return index
        except Unreadable:
            pass
        self.at = start
        return None

    def subscript_text(self) -> str:
        if self.token.text != "{":
            return self.next().text
        depth, text = 0, ""
        while True:
            token = self.next()
            if token.kind == "eof":
                raise Unreadable("unbalanced subscript")
            depth += {"{": 1, "}": -1}.get(token.text, 0)
            text += "" if token.text in ("{", "}") else token.text.replace(" ", "")
            if depth == 0:
                return text

    def primed(self, value: n.Node) -> n.Node:
        marks = ""
        while self.is_op("'"):
            marks += self.next().text
        if self.reading.calculus and isinstance(value, n.Call) and len(names := n.free_symbols(value)) == 1:
            return n.Derivative(*names, len(marks), value)
        return primed(value, marks)

    # applications of unknown functions

    def applies(self, name: str) -> bool:
        """Whether a symbol before a parenthesis is a function's name rather than a factor."""
        letter = name[:1]
        if letter in "fgFGPEhHφ" and "_" not in name and len(name.rstrip("'")) == 1:
            return letter not in "PEhH" or self.single_argument()
        return self.single_argument()

    def single_argument(self) -> bool:
        inner, close = self.peek(1), self.peek(2)
        event = self.tokens[self.at - 1].text == "P" and inner.kind == "sym" and close.kind == "rel"
        return event or (inner.kind in ("sym", "num") and close.text == ")") or self.comma_inside()

    def comma_inside(self) -> bool:
        depth, at = 0, self.at
        while at < len(self.tokens):
            token = self.tokens[at]
            depth += {"open": 1, "close": -1}.get(token.kind, 0)
            if depth == 1 and token.text == ",":
                return True
            if depth == 0:
                return False
            at += 1
        return False

    def application(self, name: str) -> n.Node:
        self.next()
        inner = self.bracket_content()
        self.expect("close", ")")
        arguments = inner.items if isinstance(inner, n.Seq) and not inner.left else (inner,)
        if name == "C" and len(arguments) == 2:
            return n.Call("binom", arguments)
        return n.Apply(name, arguments)

    def bracket_content(self, head: int = 0) -> n.Node:
        """A list up to the closing bracket, in which bars and set-builder heads start afresh."""
        outer = self.bars, self.head
        self.bars, self.head = 0, head
        inner = self.list_until("close")
        self.bars, self.head = outer
        return inner
