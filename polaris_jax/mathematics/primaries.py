r"""Reads what expressions are made of: numbers, brackets, functions, \\frac and the like, matrices."""

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.atoms import derivative, number
from polaris_jax.mathematics.calculus import CalculusReader
from polaris_jax.mathematics.symbols import listed
from polaris_jax.mathematics.tokens import Token, Unreadable

FRACTIONS = {"frac": "div"}
INVERSES = frozenset(listed("sin cos tan cot sec csc"))


class PrimaryReader(CalculusReader):
    """Needs the methods that read sums, powers and lists, which its subclasses have."""

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
            "currency": lambda: self.money(token.text),
        }
        if token.kind not in readers:
            raise Unreadable(f"unexpected {token.kind} {token.text}")
        return readers[token.kind]()

    def money(self, currency: str) -> n.Node:
        self.currency = currency
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
            taken = derivative(first, second) if name == "frac" else None
            if not taken and self.reading.calculus and name == "frac":
                taken = self.derivative(first, second)
            return taken or n.Call(FRACTIONS.get(name, name), (first, second))
        if name in ("sum", "prod"):
            return self.fold(name)
        if self.reading.calculus and name in ("int", "lim"):
            return self.integral() if name == "int" else self.limit()
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
        high = self.argument() if self.is_op("^") and self.next() else None
        if start is None or (high is None and not self.reading.calculus):
            raise Unreadable(f"{kind} without bounds")
        variable, low, high = self.bounds_of_fold(start, high)
        return n.Fold(kind, variable, low, high, n.with_symbol(self.term(), variable))

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
