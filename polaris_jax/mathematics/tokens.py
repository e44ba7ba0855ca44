r"""From LaTeX or plain text to tokens: fonts, spacing and sizing gone, one spelling for each thing.

A token's kind is "num", "sym", "const", "func", "cmd" (takes arguments), "op", "rel", "open", "close", "sep",
"text", "row", "col", "begin", "end" or "accent". `gap` says what stood before it: "", " ", "\\quad", or "\\" for
other explicit LaTeX space (`\,`, `~`, ...), which is how people set a unit apart.
"""

import re
import unicodedata
from typing import NamedTuple

from polaris_jax.mathematics import symbols
from polaris_jax.mathematics.letters import letter_tokens, upright_tokens
from polaris_jax.mathematics.numerals import numeral
from polaris_jax.mathematics.repairs import known_part, with_lost_spaces
from polaris_jax.mathematics.units import is_unit_text


class Unreadable(Exception):
    """The text is no answer that the reader knows."""


class Token(NamedTuple):
    kind: str
    text: str
    gap: str = ""


_UPRIGHT = frozenset(["mathrm", "text", "textrm", "textnormal", "mbox", "hbox"])
MAX_DEPTH = 60  # of brackets and of powers, each of which counts
MAX_FONT_DEPTH = 20
_FORBIDDEN = re.compile("[\x00-\x08\x0e-\x1f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")
_SPACE = re.compile(
    r"\s+|\\[,;:!> ]|~|\\(?:quad|qquad|thinspace|medspace|thickspace|enspace|space|hfill)(?![A-Za-z])|&nbsp;"
)
_COMMAND = re.compile(r"\\([A-Za-z]+\*?|.)", re.DOTALL)
_BEFORE_A_SIGN = frozenset(["open", "sep", "rel", "colon", "row", "col", "text", "bar"])
_ROW_HEIGHT = re.compile(r"\s*\[\s*-?[0-9.]+\s*(?:pt|em|ex|mm|cm|in)\s*\]")
_IDEOGRAPHS = re.compile(r"[\u4e00-\u9fff]+")
_LETTERS = re.compile(r"[A-Za-z]+")


def clean(text: str) -> str:
    """The text with one spelling for each character. Raises Unreadable for what no answer contains."""
    if _FORBIDDEN.search(text):
        raise Unreadable("control characters or lone surrogates")
    text = with_lost_spaces(_INVISIBLE.sub("", text))
    text = text.translate(symbols.CHARACTERS)
    return unicodedata.normalize("NFKC", text).translate(symbols.CHARACTERS).strip()


def tokenize(text: str, *, comma_groups: bool = True, plus_minus: bool = False) -> list[Token]:
    """Tokens of a cleaned text. `comma_groups` reads 1,234 at the outermost level as one number.

    `plus_minus` reads +- between two values as ±; in front of a value it always is.
    """
    return _Tokenizer(text, comma_groups, plus_minus, 0).run()


def group_end(text: str, start: int) -> int:
    """Index of the brace that closes the one at `start`. Raises Unreadable if there is none."""
    depth, i = 0, start
    while i < len(text):
        char = text[i]
        if char == "\\":
            i += 1
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return i
        i += 1
    raise Unreadable("unbalanced braces")


class _Tokenizer:
    def __init__(self, text: str, comma_groups: bool, plus_minus: bool, depth: int):
        if depth > MAX_FONT_DEPTH:
            raise Unreadable("nested too deeply")
        self.text, self.comma_groups, self.plus_minus, self.depth = text, comma_groups, plus_minus, depth
        self.at, self.gap, self.brackets = 0, "", 0
        self.tokens: list[Token] = []

    def run(self) -> list[Token]:
        while self.at < len(self.text):
            space = _SPACE.match(self.text, self.at)
            if space:
                self._skip_space(space)
            elif not (self._number() or self._letters() or self._ideographs()):
                self._mark()
        return self.tokens

    def _skip_space(self, space: re.Match) -> None:
        mark = space.group()
        gap = "\\quad" if "quad" in mark else " " if mark.isspace() or mark == "\\!" else "\\"
        self.gap = max(self.gap, gap)
        self.at = space.end()

    def _emit(self, kind: str, text: str) -> None:
        self.tokens.append(Token(kind, text, self.gap))
        self.gap = ""

    # numbers

    def _number(self) -> bool:
        char = self.text[self.at]
        if not (char in "0123456789." or char.isupper()):
            return False
        groups = self.comma_groups and self.brackets == 0 and self.depth == 0
        found = numeral(self.text, self.at, comma_groups=groups)
        if found:
            self._emit("num", found.number)
            self.at = found.end
        return found is not None

    # letters

    def _letters(self) -> bool:
        match = _LETTERS.match(self.text, self.at)
        if not match:
            return False
        self.at = match.end()
        for kind, text in letter_tokens(match.group(), self._follows_number()):
            self._emit(kind, text)
        return True

    def _ideographs(self) -> bool:
        match = _IDEOGRAPHS.match(self.text, self.at)
        if not match:
            return False
        self.at = match.end()
        word = symbols.IDEOGRAPH_SEPARATORS.get(match.group())
        self._emit("sep" if word else "text", word or match.group())
        return True

    def _follows_number(self) -> bool:
        return bool(self.tokens) and self.tokens[-1].kind in ("num", "close", "const")

    # commands and marks

    def _mark(self) -> None:
        if self.text[self.at] == "\\":
            self._command()
            return
        for width in (3, 2, 1):
            mark = self.text[self.at : self.at + width]
            if mark in symbols.MARKS and self._is_one_mark(mark):
                kind, text = symbols.MARKS[mark]
                self.at += width
                self._track(kind)
                self._emit(kind, text)
                return
        raise Unreadable(f"unknown character {self.text[self.at]!r}")

    def _is_one_mark(self, mark: str) -> bool:
        """Whether signs are one mark, unlike those of n!=120 and 5+-3."""
        if mark == "+-":
            return self.plus_minus or not self.tokens or self.tokens[-1].kind in _BEFORE_A_SIGN
        return mark != "!=" or bool(self.gap)

    def _track(self, kind: str) -> None:
        self.brackets += {"open": 1, "close": -1}.get(kind, 0)

    def _command(self) -> None:
        match = _COMMAND.match(self.text, self.at)
        if not match:
            raise Unreadable("stray backslash")
        name, self.at = match.group(1), match.end()
        if name in symbols.COMMANDS:
            kind, text = symbols.COMMANDS[name]
            self._track(kind)
            self._emit(kind, text)
            self._skip_row_height(kind)
        elif name in symbols.IGNORED:
            self._skip_delimiter_dot(name)
        elif name in symbols.IGNORED_WITH_ARGUMENT or name in symbols.COLOURS:
            self._argument()
        elif name in symbols.FONTS or name in symbols.TEXTS:
            self._font(name)
        elif name == "mathbb" or name == "Bbb":
            self._emit("const", self._blackboard())
        elif name in ("begin", "end"):
            self._emit(name, self._argument().strip("* "))
            self._column_spec(name)
        elif part := known_part(name):
            self.at = match.start()
            space = self.at + 1 + len(part)
            self.text = f"{self.text[:space]} {self.text[space:]}"
        else:
            raise Unreadable(f"unknown command \\{name}")

    def _skip_delimiter_dot(self, name: str) -> None:
        if name in ("left", "right") and self.text[self.at : self.at + 1] == ".":
            self.at += 1

    def _skip_row_height(self, kind: str) -> None:
        if kind == "row" and (height := _ROW_HEIGHT.match(self.text, self.at)):
            self.at = height.end()

    def _column_spec(self, name: str) -> None:
        if name == "begin" and self.tokens[-1].text == "array" and self.text[self.at : self.at + 1] == "{":
            self._argument()

    def _argument(self) -> str:
        while space := _SPACE.match(self.text, self.at):
            self.at = space.end()
        if self.text[self.at : self.at + 1] == "{":
            end = group_end(self.text, self.at)
            content, self.at = self.text[self.at + 1 : end], end + 1
            return content
        match = _COMMAND.match(self.text, self.at) or re.compile(r".", re.DOTALL).match(self.text, self.at)
        if not match:
            raise Unreadable("missing argument")
        self.at = match.end()
        return match.group()

    def _blackboard(self) -> str:
        name = self._argument().strip()
        if name not in ("R", "Z", "N", "Q", "C"):
            raise Unreadable(f"unknown set {name!r}")
        return name

    def _font(self, name: str) -> None:
        content = self._argument()
        word = content.strip(" ~\\,;:")
        if (name in symbols.TEXTS and not _is_maths(content)) or (len(word) > 1 and is_unit_text(word)):
            self._emit("text", content)
        elif name in symbols.FONTS and len(word) > 1 and word.isalpha():
            for kind, text in upright_tokens(word):
                self._emit(kind, text)
        else:
            self._splice(content, upright_letter=name in _UPRIGHT and len(word) == 1 and word.isalpha())

    def _splice(self, content: str, upright_letter: bool) -> None:
        """The content's tokens in place of the command; a letter set upright may be a unit."""
        content = re.sub(r"(?<!\\)\$", "", content)
        inner = _Tokenizer(content, self.comma_groups, self.plus_minus, self.depth + 1).run()
        if inner:
            inner[0] = inner[0]._replace(gap=max(inner[0].gap, self.gap, "\\" if upright_letter else ""))
        self.gap = ""
        self.tokens.extend(inner if len(inner) == 1 else [Token("open", "{"), *inner, Token("close", "}")])


def _is_maths(content: str) -> bool:
    r"""Text that is a number, a formula or a single letter in disguise: \text{24}, \textbf{x}, \text{$x=2$}."""
    stripped = content.strip()
    if len(stripped) == 1:
        return stripped.isalnum()
    if re.search(r"[A-Za-z]{2}", re.sub(r"\\[A-Za-z]+", "", stripped)):
        return False
    return bool(re.search(r"[0-9\\=]", stripped)) and not re.search(r"^\(?[A-Za-z][).^]|[a-z]\.|\d:\d", stripped)
