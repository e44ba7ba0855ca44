r"""Reads an answer, LaTeX or plain, into a tree by recursive descent. Nothing is evaluated here.

From loosest to tightest: lists, relations, ratios, set operations, sums, products, powers. Raises Unreadable for
whatever it does not know: the verifier then has only the text to go by.
"""

import itertools
import re
from fractions import Fraction

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics import qualifiers, units
from polaris_jax.mathematics.approximations import without_approximations
from polaris_jax.mathematics.calculus import with_apart_differentials, with_differentials
from polaris_jax.mathematics.cursor import PLAIN, Reading
from polaris_jax.mathematics.expressions import FACTOR_STARTS, ExpressionReader
from polaris_jax.mathematics.prose import is_prefix, named_by_words, trim, without_reversed_brackets
from polaris_jax.mathematics.tokens import MAX_DEPTH, Token, Unreadable, clean, tokenize

MAX_TOKENS = 4000
_ITEM_ENDS = frozenset(["sep", "close", "rel", "row", "eof"])
_UNIT_MARKS = units.LETTERS | frozenset("^/{}-*")
_STRONG = frozenset([";", "or"])
_UNIVERSAL = re.compile(r"\s*,?\s*(?:for (?:all|every|each|any)|where .* is (?:any|an arbitrary) constant)\b")


def read(text: str, reading: Reading = PLAIN) -> n.Node:
    """The tree of an answer. Raises Unreadable."""
    text = without_reversed_brackets(trim(clean(text)))
    if (named := named_by_words(text)) != n.Words(text):  # before "no" is read as a product of letters
        return named
    if (found := qualifiers.split(text)) and (qualified := _qualified(*found, reading)):
        return qualified
    return _parsed(_tokens(text, reading), reading)


def _tokens(text: str, reading: Reading) -> list[Token]:
    if not reading.calculus:
        return tokenize(text, comma_groups=reading.comma_groups, plus_minus=reading.plus_minus)
    return with_differentials(tokenize(with_apart_differentials(text), comma_groups=reading.comma_groups))


def _qualified(text: str, names: tuple[str, ...], domain: str, reading: Reading) -> n.Qualified | None:
    """The answer with what its end says about its parameters, where it has such parameters."""
    try:
        body = qualifiers.from_builder(_parsed(_tokens(trim(text), reading), reading))
    except (Unreadable, ZeroDivisionError):
        return None
    parameters = set(names) <= n.free_symbols(body) and not any(qualifiers.is_about(body, name) for name in names)
    return n.Qualified(body, names, domain) if parameters else None


def _parsed(tokens: list[Token], reading: Reading) -> n.Node:
    tokens = [_separator(token) for token in without_approximations(tokens)]
    if not tokens or len(tokens) > MAX_TOKENS:
        raise Unreadable("empty, or too long")
    reader = Reader(tokens, reading)
    answer = reader.list_until("eof")
    reader.expect("eof")
    return _read_within_words(answer, reading) if isinstance(answer, n.Words) else answer


def _read_within_words(words: n.Words, reading: Reading) -> n.Node:
    """Prose that holds a number may be an answer all in text, such as 42 units; a time of the day is not."""
    if not re.search(r"[0-9]", words.text) or re.search(r"[0-9]:[0-9]|[{}]", words.text):
        return words
    try:
        answer = _parsed(_tokens(trim(words.text), reading), reading)
    except (Unreadable, ZeroDivisionError):
        return words
    return answer


def _separator(token: Token) -> Token:
    """Text that only joins items, such as \\text{ and }, is a separator."""
    if token.kind == "text":
        word = token.text.replace("~", " ").strip(" ,;\\").lower()
        if word == "to":
            return Token("colon", ":", token.gap)
        if word in ("and", "or", "and/or") or (not word and token.text.strip(" ~\\")):
            return Token("sep", {"": ",", "and/or": "or"}.get(word, word), token.gap)
    return token


class Reader(ExpressionReader):
    # lists and relations

    def list_until(self, *stops: str) -> n.Node:
        """Items and their separators up to a token of one of these kinds, which is left."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        items, separators = [], []
        while True:
            items.append(self.item())
            if self.next_item_follows(items[-1]):
                separators.append(",")
                continue
            if self.token.kind not in ("sep", "row"):
                break
            separators.append(self.separators())
            if self.token.kind in stops:
                separators.pop()
                break
        self.depth -= 1
        return _grouped(items, separators)

    def next_item_follows(self, item: n.Node) -> bool:
        r"""Whether another item follows without a separator, as in (1,2) (2,1) and 1 \quad 2."""
        if isinstance(item, n.Seq) and item.left in ("(", "[", "<"):
            return self.token.kind == "open"
        return self.token.gap == "\\quad" and self.token.kind in FACTOR_STARTS

    def separators(self) -> str:
        """One separator for a run such as `, and`: the strongest of them."""
        found = []
        while self.token.kind in ("sep", "row"):
            found.append(self.next().text)
        if found.count(",") > 1:
            raise Unreadable("empty item")
        return next((mark for mark in (";", "or", "and") if mark in found), ",")

    def item(self) -> n.Node:
        prose = self.leading_prose()
        if prose is not None and self.token.kind in ("eof", "sep", "row", "close", "col", "end"):
            return named_by_words(prose)
        if prose is not None and not is_prefix(prose):
            if self.token.text != "=":
                raise Unreadable("prose before a formula")
            return self.relation(n.Sym(prose.strip()))
        if prose is not None and self.token.kind == "colon":
            self.next()
        value = self.relation()
        self.skip_universal_clause()
        return value

    def skip_universal_clause(self) -> None:
        """Passes over `for all real x`, which says nothing that the formula before it does not."""
        if self.token.kind == "text" and _UNIVERSAL.match(self.token.text):
            while self.token.kind in ("text", "sym", "const") or self.token.text == "in":
                self.next()

    def leading_prose(self) -> str | None:
        parts = []
        while self.token.kind == "text":
            parts.append(self.next().text)
            if self.token.kind == "num" and self.peek().kind in ("text", "eof") and parts[-1].strip().isalpha():
                break
        return " ".join(parts) if parts else None

    def relation(self, first: n.Node | None = None) -> n.Node:
        if first is None and self.token.text == "=":
            self.next()
        sides, ops = [first or self.ratio()], []
        while self.token.kind in ("rel", "mid") or (self.token.kind == "bar" and not self.bars and not self.head):
            if self.token.kind == "mid" and self.head:
                break
            ops.append(self.next().text)
            sides.append(self.side())
        if self.token.kind == "cmd" and self.token.text == "pmod":
            self.next()
            sides[-1] = n.Call("mod", (sides[-1], self.argument()))
        return n.Relation(tuple(ops), tuple(sides)) if ops else sides[0]

    def side(self) -> n.Node:
        """What follows a relation's sign: a value, or the name of one in words."""
        prose = self.leading_prose()
        return self.ratio() if prose is None else n.Sym(prose.strip())

    def ratio(self) -> n.Node:
        parts = [self.quantity()]
        while self.token.kind == "colon" and not self.head:
            self.next()
            parts.append(self.quantity())
        return n.Ratio(tuple(parts)) if len(parts) > 1 else parts[0]

    def quantity(self) -> n.Node:
        """A value with whatever words or unit follow it."""
        outer, self.currency = self.currency, ""
        value = self.sets()
        if self.is_op("choose", "over"):
            value = n.Call({"choose": "binom", "over": "div"}[self.next().text], (value, self.sets()))
        unit = self.unit()
        unit = f"{self.currency} {unit}" if self.currency else unit
        self.currency = outer
        return with_unit(value, unit) if unit else value

    def unit(self) -> str:
        """Text of the unit that starts here; "" if there is none."""
        if _UNIVERSAL.match(self.token.text):
            return ""
        text = self.aside()
        while self.token.kind in ("text", "currency") or self.unit_ahead(bool(text)):
            token = self.next()
            text += "^" + self.exponent_text() if token.text == "^" else " " + token.text
        return text.strip()

    def aside(self) -> str:
        """Words in brackets behind a value, such as (square units)."""
        if not self.aside_ahead():
            return ""
        self.next()
        words = self.leading_prose() or ""
        self.expect("close", ")")
        return words

    def exponent_text(self) -> str:
        if self.token.kind != "open":
            return self.next().text
        self.next()
        text = ""
        while self.token.kind in ("num", "op"):
            text += self.next().text
        self.expect("close", "}")
        return text

    def unit_ahead(self, started: bool = False) -> bool:
        """Whether explicit space and then nothing but a unit such as m or m/s^2 follow up to the end of the item."""
        if started and self.is_op("^", "/", "*"):
            return True
        if not self.reading.unit_letters or self.token.kind != "sym" or not units.is_unit_letter(self.token.text):
            return False
        if not self.token.gap.startswith("\\") and not started and not self.compound_unit_ahead():
            return False
        rest = itertools.takewhile(lambda token: token.kind not in _ITEM_ENDS, self.tokens[self.at :])
        return all(token.kind in ("text", "num") or token.text in _UNIT_MARKS for token in rest)

    def compound_unit_ahead(self) -> bool:
        """Whether m/s or m/s^2 follows a number directly."""
        written = "".join(token.text for token in self.tokens[self.at :])
        return self.tokens[self.at - 1].kind == "num" and written in ("m/s", "m/s^2", "m/s^{2}")


def _grouped(items: list[n.Node], separators: list[str]) -> n.Node:
    """One item, a list, or, where `;` or `or` separate lists with commas, a list of lists."""
    if not separators:
        return items[0]
    kinds = set(separators)
    strong = kinds & _STRONG
    if not strong or kinds == strong or _is_closed(items, separators):
        return n.Seq(tuple(items), separator=next(iter(strong or kinds)) if len(kinds) == 1 or strong else ",")
    groups: list[list[n.Node]] = [[items[0]]]
    for item, separator in zip(items[1:], separators, strict=True):
        if separator in strong:
            groups.append([])
        groups[-1].append(item)
    return n.Seq(tuple(n.Seq(tuple(group)) if len(group) > 1 else group[0] for group in groups), separator=min(strong))


def _is_closed(items: list[n.Node], separators: list[str]) -> bool:
    """Whether commas enumerate values of which `or` only sets off the last, as in 21, 16 or 11; not conditions."""
    first = separators.index("or") if "or" in separators else 0
    enumerated = first > 0 and set(separators[:first]) == {","} and set(separators[first:]) == {"or"}
    return enumerated and not any(isinstance(item, n.Relation) and item.ops != ("=",) for item in items)


def with_unit(value: n.Node, unit: str) -> n.Node:
    """The value with the unit that follows it; percent, degrees and words such as million are part of the value."""
    words = [word for word in re.findall(r"[A-Za-z]+", unit.lower()) if word not in units.CURRENCIES]
    if unit.strip(" \\") == "%" or (words and words[0] in units.PERCENT_WORDS) or words == ["per", "cent"]:
        return n.Percent(value)
    if words and words[0] in units.DEGREE_WORDS and len(words) == 1:
        return n.Degree(value)
    for word in words[:1]:
        if word in units.MULTIPLIERS:
            value = n.Call("mul", (value, n.Num(Fraction(units.MULTIPLIERS[word]))))
            unit = unit.lower().replace(word, "", 1)
    if units.changes_value(unit):
        raise Unreadable("words after a value that say more than its unit")
    return n.Quantity(value, unit.strip(" ()")) if re.search(r"[A-Za-z$]", unit) else value
