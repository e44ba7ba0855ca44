"""Answers that are words: choices, short prose, times of the day."""

import re
import unicodedata

_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|textsf|texttt|emph|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt"
    r"|boldsymbol|bm|operatorname|underline|boxed|fbox)\*?\s*(?=\{)"
)
_SPACING = re.compile(r"\\[,;:! ]|\\q?quad(?![A-Za-z])|~|\s+")
_CHOICE = re.compile(r"\(?([A-Za-z])[).:]?")
_ARTICLES = frozenset(["a", "an", "the"])
_TIME = re.compile(r"(\d{1,2}):(\d\d)(am|pm)?")
_SYNONYMS = {
    "no solutions": "no solution",
    "no real solutions": "no real solution",
    "does not exist": "dne",
    "infinite": "infinitely many",
    "all reals": "all real numbers",
    "real numbers": "all real numbers",
}


def plain(text: str) -> str:
    """Text without fonts, braces, dollar signs and superfluous space; case is kept."""
    text = _WRAPPERS.sub("", text.replace("$", ""))
    text = text.replace("\\colon", ":")
    text = _SPACING.sub(" ", re.sub(r"[{}]|\\[()\[\]]|\*\*|\\(?:left|right)(?![A-Za-z])", "", text))
    return text.strip(" .,;")


def normal_words(text: str) -> str:
    """Lower-case words without articles and punctuation."""
    text = unicodedata.normalize("NFKC", plain(text)).lower()
    words = re.findall(r"[^\W_]+|[+\-/=<>:%]", re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text))
    if any(len(word) > 2 for word in words):  # else the letters may be choices
        words = [word for word in words if word not in _ARTICLES]
    joined = " ".join(words)
    return _SYNONYMS.get(joined, joined)


def same_words(gold: str, box: str) -> bool:
    """Whether two pieces of prose say the same, letter case, articles and punctuation aside."""
    first, second = normal_words(gold), normal_words(box)
    if first == second:
        return bool(re.search(r"\w", first))
    return _minutes(gold) is not None and _minutes(gold) == _minutes(box)


def is_time(text: str) -> bool:
    """Whether the text is a time of the day with its half, such as 4:30 p.m."""
    return _minutes(text) is not None and text.rstrip(" .}").lower().endswith("m")


def _minutes(text: str) -> int | None:
    """Minutes since midnight of a time such as 4:30 p.m. or 16:30."""
    match = _TIME.fullmatch(re.sub(r"[\s.]", "", plain(text).lower()))
    if not match:
        return None
    hour, minute, half = int(match.group(1)), int(match.group(2)), match.group(3)
    if minute > 59 or hour > (12 if half else 23):
        return None
    if half:
        hour = hour % 12 + (12 if half == "pm" else 0)
    return 60 * hour + minute


def choice(text: str) -> str | None:
    """The letter, where the text is one choice and nothing else: C, (C), C., \\text{(C)}, Option C."""
    match = _CHOICE.fullmatch(_without_label(plain(text)).replace(" ", ""))
    return match.group(1) if match else None


def chosen(text: str) -> str | None:
    """The letter of a choice written out with its content: (C) 12, C. 12, C: an ellipse."""
    match = re.match(r"(?:\(([A-Za-z])\)|([A-Z])[).:])(?=\s|\S)", _without_label(plain(text)))
    return (match.group(1) or match.group(2)) if match else None


def _without_label(text: str) -> str:
    return re.sub(r"^(?:option|choice|answer|statement)\s*:?\s*", "", text, flags=re.IGNORECASE)


def _choices(text: str) -> list[str] | None:
    """The letters of several choices, such as ABD or (A), (B) and (D); None for anything else."""
    letters = re.sub(r"[\s,;()]|\band\b", "", plain(text))
    ascending = letters == "".join(sorted(set(letters)))
    return list(letters) if re.fullmatch(r"[A-F]{2,}", letters) and ascending else None


def same_choice(gold: str, box: str) -> bool:
    """Whether the box names the gold's choices, with or without one choice's content behind it."""
    if _choices(gold):
        return _choices(gold) == _choices(box)
    letter = choice(gold)
    if letter is None or not letter.isupper():
        return False
    found = choice(box)
    if found is not None:
        marked = not re.fullmatch(r"\s*[a-z]\s*", box)
        return (found.upper() if marked else found) == letter
    rest = chosen(box)
    others = re.findall(r"\(([A-Z])\)", plain(box))
    return rest == letter and len(set(others) | {letter}) == 1
