"""A position in a list of tokens."""

from dataclasses import dataclass

from polaris_jax.mathematics.tokens import Token, Unreadable


@dataclass(frozen=True)
class Reading:
    """How to read what is ambiguous."""

    comma_groups: bool = True  # 1,234 is a number, not a list
    unit_letters: bool = True  # a letter such as m after explicit space is a unit, not a factor
    tight_letters: bool = False  # t/RC is t/(RC), not (t/R)C
    plus_minus: bool = False  # 3+-2 is 3±2, not 3-2
    calculus: bool = False  # integrals, limits and derivatives are read


PLAIN = Reading()
END = Token("eof", "")


class Cursor:
    """The tokens of an answer, where the reader stands in them, and what it is inside of."""

    def __init__(self, tokens: list[Token], reading: Reading):
        self.tokens, self.at, self.depth = tokens, 0, 0
        self.reading = reading
        self.bars = 0  # open |...|, in which a bar closes
        self.head = 0  # open set-builder heads, which a bar or colon ends
        self.currency = ""  # of the value that is being read

    @property
    def token(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else END

    def peek(self, offset: int = 1) -> Token:
        return self.tokens[self.at + offset] if self.at + offset < len(self.tokens) else END

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
