"""What datasets write into a ground truth's text beside an answer: a list of quoted texts, or words for "none here"."""

import re

# "[\"27\"]", "['70']": the tokens of a list of quoted texts. Without quotes, [1, 2] is an interval or a point.
_LIST_TOKEN = re.compile(
    r"""\s*(?:(?P<open>[\[(])|(?P<close>[\])])|,|(?P<bare>[+-]?\d+(?:\.\d+)?|None|null|nan|NaN)(?=\s*[,\])])"""
    r"""|"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)')""",
    re.DOTALL,
)
_OVER_ESCAPED = re.compile(r"""[\[(]+\s*\\["']""")  # [\"27\"], whose own quotes are escaped
# What a backslash hides in such a text. A letter behind it that goes on is LaTeX (\frac, \times, \neq) left unescaped.
_ESCAPE = re.compile(
    r"""\\(?:(?P<itself>[\\"'/])|u(?P<u>[0-9a-fA-F]{4})|x(?P<x>[0-9a-f]{2})|U(?P<U>00(?:0[0-9a-f]|10)[0-9a-f]{4})"""
    r"|(?P<control>[nrtbf])(?![A-Za-z]))"
)
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}

# Texts that say that the answer is elsewhere or nowhere: made of these words alone, at least one of them telling. None,
# no solution, does not exist, undefined, impossible and the like are right answers.
_TELLING_WORDS = """
    answer answerable answered answers applicable attached available demonstrated ended explanation explanations
    extracted found given mentioned missing nan notavailable notfound notgiven notprovided null omitted parsed proof
    proofs prove proved proven provided refer see shown specified stated unanswerable unanswered unavailable unknown
    unspecified varies vary 证 证明 略 见 详见 参见 参考 找到 提供 给出 未知 暂无 得证 答案 不适用"""
_TOLD_WORDS = """
    a above already an and any appendix are as at attachment based be been below book by can check claim complete
    completed construction contradiction correct could derivation desired detailed details diagram direct end exercise
    explicit figure file final following for formal formula full graph has have hence here image in induction
    information is it key link may might needed no not notes numerical of official only open original our page pdf
    picture please problem question reasoning required result single solution solutions specific statement steps table
    text that the theorem there therefore this thus to type valid was were will with work
    请 解 详解 解析 解答 分析 过程 详 看 如 上 下 文 面 未 没有 无 暂 毕 完 完毕 命题 已 的 待 题 本 此 为 是 所 示
    由 可 原"""
_TELLING, _TOLD = frozenset(_TELLING_WORDS.split()), frozenset(_TOLD_WORDS.split())
_CHINESE = sorted((word for word in _TELLING | _TOLD if not word.isascii()), key=len, reverse=True)
_DIGIT = re.compile("[0-9]")
_WORD = re.compile(rf"[a-z]+|{'|'.join(_CHINESE)}|\S")
_DRESS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|emph|quad|blacksquare|square|box|qed)(?![a-z])|\\[ ,;:!]"
    r"|[.,:;!?()\[\]{}<>#`\"'*$_~。，：；！（）【】■□∎—-]"
)


def quoted_texts(text: str) -> list[str] | None:
    """The texts of a list of quoted texts, however nested, of one number, or of nothing; or of one quoted text.

    None where the text is no such list.
    """
    if text[:1] not in ("[", "(", '"', "'"):
        return None
    if _OVER_ESCAPED.match(text):
        text = text.replace('\\"', '"').replace("\\'", "'")
    found, depth, quoted, place = [], 0, False, 0
    while place < len(text):
        token = _LIST_TOKEN.match(text, place)
        if token is None or (depth == 0 and place > 0):
            return None
        place = token.end()
        depth += (token["open"] is not None) - (token["close"] is not None)
        inside = token["double"] if token["double"] is not None else token["single"]
        if inside is not None:
            found.append(_unescaped(inside))
            quoted = True
        elif token["bare"] and token["bare"] not in ("None", "null", "nan", "NaN"):
            found.append(token["bare"])
    return found if depth == 0 and (quoted or len(found) == 1 or text == "[]") else None


def _unescaped(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        code = match["u"] or match["x"] or match["U"]
        return chr(int(code, 16)) if code else match["itself"] or _CONTROLS[match["control"]]

    # JSON writes characters beyond 16 bits as two halves, which this joins.
    return _ESCAPE.sub(character, text).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def says_none(text: str) -> bool:
    """Whether the text says that the answer is elsewhere or nowhere, such as proof, notfound, N/A, see solution."""
    if len(text) > 200 or _DIGIT.search(text):
        return False
    words = _WORD.findall(_DRESS.sub(" ", text.lower()))
    if text in ("NA", "N.A.", "n.a.") or "".join(words) in ("n/a", "qed", "tbd", "solution"):
        return True
    return (_TELLING | _TOLD).issuperset(words) and not _TELLING.isdisjoint(words)
