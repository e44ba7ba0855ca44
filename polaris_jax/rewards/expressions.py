r"""Reads sums, products, powers and what they are made of; `Reader` adds lists, relations and units."""

from polaris_jax.rewards import nodes as n
from polaris_jax.rewards.atoms import derivative, in_base, is_proper, is_set, negated, number, primed
from polaris_jax.rewards.tokens import MAX_DEPTH, Token, Unreadable

_END = Token("eof", "")
FACTOR_STARTS = frozenset(["num", "sym", "const", "func", "cmd", "open", "accent", "prefix", "begin", "currency"])
FRACTIONS = {"frac": "div"}
INVERSES = frozenset("sin cos tan cot sec csc".split())
_MARKS = frozenset(["deg", "'", "+", "-", "*"])  # superscripts that are no exponents


class ExpressionReader:
    def __init__(self, tokens: list[Token], unit_letters: bool):
        self.tokens, self.at, self.depth = tokens, 0, 0
        self.unit_letters = unit_letters
        self.bars = 0  # open |...|, in which a bar closes
        self.head = 0  # open set-builder heads, which a bar or colon ends
        self.currency = False

    # tokens

    @property
    def token(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def peek(self, offset: int = 1) -> Token:
        return self.tokens[self.at + offset] if self.at + offset < len(self.tokens) else _END

    def next(self) -> Token:
        token = self.token
        self.at += 1
        return token

    def is_op(self, *texts: str) -> bool:
        return self.token.kind == "op" and self.token.text in texts

    def expect(self, kind: str, text: str = "") -> Token:
        if self.token.kind != kind or (text and self.token.text != text):
            raise Unreadable(f"expected {kind} {text}, found {self.token.kind} {self.token.text}")
        return self.next()

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
                value = n.Call(name, (value, self.signed_power()))
            elif self.starts_factor():
                value = self.implicit(value)
            else:
                break
        return value

    def starts_factor(self) -> bool:
        token = self.token
        if token.gap == "\\quad":
            return False
        if token.kind == "bar":
            return not self.bars and not self.head and self.closing_bar_ahead()
        if token.kind not in FACTOR_STARTS or token.text == "pmod":
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
        return n.Call("pow", (base, n.Call("neg", (exponent,)) if sign else exponent))

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
        if not marks or not closed or (marks in ("+", "-") and not braced and self.tokens[at : at + 1]):
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
        text = self.subscript_text()
        if isinstance(base, n.Num):
            return in_base(base, text)
        if isinstance(base, (n.Sym, n.Const)):
            return n.Sym(f"{base.name}_{text}")
        raise Unreadable("subscript of an expression")

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
        return inner.kind in ("sym", "num") and close.text == ")" or self.comma_inside()

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

    # primaries

    def primary(self) -> n.Node:
        token = self.next()
        readers = {
            "num": lambda: number(token.text),
            "sym": lambda: n.Sym(token.text),
            "const": lambda: n.Const(token.text),
            "open": lambda: self.brackets(token.text),
            "bar": self.absolute,
            "func": lambda: self.function(token.text),
            "cmd": lambda: self.command(token.text),
            "accent": lambda: self.accented(token.text),
            "prefix": lambda: self.named_points(token.text),
            "begin": lambda: self.environment(token.text),
            "currency": self.money,
        }
        if token.kind not in readers:
            raise Unreadable(f"unexpected {token.kind} {token.text}")
        return readers[token.kind]()

    def money(self) -> n.Node:
        self.currency = True
        return self.primary()

    def brackets(self, left: str) -> n.Node:
        if left == "set":
            return self.set_braces()
        if left == "{" and self.token.text == "}":
            self.next()
            return self.primary()
        inner = self.bracket_content()
        right = self.expect("close").text
        if left in ("floor", "ceil") and right in ("floor", "ceil"):
            return n.Call(left if left == right else "round", (inner,))
        return self.close_brackets(left, inner, right)

    def close_brackets(self, left: str, inner: n.Node, right: str) -> n.Node:
        if (left == "{") != (right == "}") or (left == "<") != (right == ">") or right == "set":
            raise Unreadable(f"{left} closed by {right}")
        if isinstance(inner, n.Seq) and not inner.left:
            if left == "{":
                return inner
            if inner.separator not in (",", ";"):
                raise Unreadable("and, or inside brackets")
            return n.Seq(inner.items, left, right)
        if (left, right) not in (("(", ")"), ("[", "]"), ("{", "}")):
            raise Unreadable(f"one value in {left} {right}")
        return inner

    def set_braces(self) -> n.Node:
        if self.token == Token("close", "set", self.token.gap):
            self.next()
            return n.Const("empty")
        inner = self.bracket_content(head=1)
        if self.token.kind in ("mid", "bar", "colon"):
            self.next()
            inner = n.Builder(inner, self.bracket_content())
        self.expect("close", "set")
        if isinstance(inner, n.Builder):
            return inner
        items = inner.items if isinstance(inner, n.Seq) and not inner.left else (inner,)
        return n.Seq(items, "set", "set")

    def absolute(self) -> n.Node:
        self.bars += 1
        inner = self.sum()
        self.bars -= 1
        self.expect("bar")
        return n.Call("abs", (inner,))

    def accented(self, name: str) -> n.Node:
        inner = self.argument()
        if not name:
            return inner
        symbols = [part.name for part in n.walk(inner) if isinstance(part, (n.Sym, n.Const))]
        if not symbols or n.contains(inner, n.Num):
            raise Unreadable(f"{name} over no symbol")
        return n.Sym(f"{name}({''.join(sorted(symbols))})")

    def named_points(self, name: str) -> n.Node:
        braced = self.token.text == "{" and bool(self.next())
        while self.token.kind in ("sym", "const", "num"):
            name += self.next().text
            if self.is_op("_"):
                self.next()
                name += "_" + self.subscript_text()
        if braced:
            self.expect("close", "}")
        return n.Sym(name)

    # functions and commands

    def argument(self) -> n.Node:
        r"""What a command takes: a group, or one token, of a number only its first digit (\frac12)."""
        token = self.token
        if token.kind == "num" and len(token.text) > 1 and token.text.isdigit():
            self.tokens[self.at] = token._replace(text=token.text[1:])
            return number(token.text[0])
        return self.primary()

    def command(self, name: str) -> n.Node:
        if name == "sqrt":
            return self.root()
        if name in ("frac", "binom"):
            first, second = self.argument(), self.argument()
            return (name == "frac" and derivative(first, second)) or n.Call(FRACTIONS.get(name, name), (first, second))
        if name in ("sum", "prod"):
            return self.fold(name)
        raise Unreadable(f"misplaced {name}")

    def root(self) -> n.Node:
        index = None
        if self.token.text == "[":
            self.next()
            index = self.sum()
            self.expect("close", "]")
        radicand = self.primary()
        return n.Call("sqrt", (radicand,)) if index is None else n.Call("root", (radicand, index))

    def fold(self, kind: str) -> n.Node:
        self.expect("op", "_")
        start = self.brackets("{") if self.next().text == "{" else None
        self.expect("op", "^")
        high = self.argument()
        if not isinstance(start, n.Relation) or start.ops != ("=",) or not isinstance(start.sides[0], (n.Sym, n.Const)):
            raise Unreadable(f"{kind} without a start")
        return n.Fold(kind, start.sides[0].name, start.sides[1], high, self.term())

    def function(self, name: str) -> n.Node:
        if self.token.text == "=":  # \\max = 5
            return n.Sym(name)
        power, base = None, None
        while self.is_op("^", "_"):
            if self.next().text == "^":
                power = self.signed_script()
            else:
                base = self.argument_of_log(name)
        if power == n.Call("neg", (n.Num(n.ONE.value, "1"),)) and name in INVERSES:
            name, power = "arc" + name, None
        value = self.applied(name, base)
        return n.Call("pow", (value, power)) if power else value

    def signed_script(self) -> n.Node:
        sign = self.is_op("-") and bool(self.next())
        exponent = self.script()
        return n.Call("neg", (exponent,)) if sign else exponent

    def argument_of_log(self, name: str) -> n.Node:
        if name != "log":
            raise Unreadable(f"subscript of {name}")
        return self.primary()

    def applied(self, name: str, base: n.Node | None) -> n.Node:
        argument = self.function_argument()
        if name in ("max", "min", "gcd", "lcm"):
            items = argument.items if isinstance(argument, n.Seq) else (argument,)
            return n.Call(name, items)
        if isinstance(argument, (n.Seq, n.Relation)):
            raise Unreadable(f"list as argument of {name}")
        return n.Call(name, (argument,) if base is None else (argument, base))

    def function_argument(self) -> n.Node:
        r"""A bracketed argument, or the factors up to the next sign or function: \sin 2x, \cos\pi t."""
        if self.token.kind == "open" and self.token.text in ("(", "[", "{", "set"):
            inner = self.primary()
            if isinstance(inner, n.Seq) and inner.left == "set":
                inner = inner.items[0] if len(inner.items) == 1 else n.Seq(inner.items)
            while self.is_op("!", "deg"):
                inner = self.postfix(inner)
            return inner
        value = self.signed_power()
        while self.starts_factor() and self.token.kind not in ("func", "open", "bar"):
            value = self.implicit(value)
        return value

    # matrices

    def environment(self, name: str) -> n.Node:
        inner = self.list_of_rows()
        self.expect("end", name)
        if name in ("pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "array"):
            if len({len(row) for row in inner}) != 1:
                raise Unreadable("ragged matrix")
            return n.Matrix(inner)
        if name == "vmatrix":
            return n.Call("det", (n.Matrix(inner),))
        if name in ("cases", "aligned", "align", "gathered", "split"):
            if any(len(row) != 1 for row in inner):
                raise Unreadable("conditions in cases")
            return n.Seq(tuple(row[0] for row in inner))
        raise Unreadable(f"environment {name}")

    def list_of_rows(self) -> tuple[tuple[n.Node, ...], ...]:
        rows, row = [], []
        while self.token.kind != "end":
            row.append(self.item())
            if self.token.kind == "col":
                self.next()
            elif self.token.kind in ("row", "end"):
                rows.append(tuple(row))
                row = []
                while self.token.kind == "row":
                    self.next()
            else:
                raise Unreadable("separator in a matrix")
        return tuple(rows)
