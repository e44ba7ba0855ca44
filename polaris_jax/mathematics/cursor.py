"""A position in a list of tokens."""

from polaris_jax.mathematics.tokens import Token, Unreadable

END = Token("eof", "")


class Cursor:
    """The tokens of an answer, where the reader stands in them, and what it is inside of."""

    def __init__(self, tokens: list[Token], unit_letters: bool, tight_letters: bool):
        self.tokens, self.at, self.depth = tokens, 0, 0
        self.unit_letters, self.tight_letters = unit_letters, tight_letters
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
