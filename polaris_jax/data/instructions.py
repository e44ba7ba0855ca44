r"""What datasets tell the model to do, beside the question: "put your final answer within \boxed{}" and the like.

The wordings are too many for a list, so they are known by their words: an instruction is a whole sentence at the front
or the end of a question that is made of the words below and of nothing else (no number, no formula, no other word), and
that says where the answer goes or to go step by step.
"""

from __future__ import annotations

import re

_MOST = 600  # characters at either end that are looked at; the longest instructions known have 330

_BOX = re.compile(r"\\*f?boxed\s*\{\s*(?:[a-z ]{0,30}|\.{3}|\\[lc]?dots)\s*\}", re.IGNORECASE)
_ENGLISH_WORDS = """
    a after all also always an and answer answering answers as assistant at automatically be before being below boxed
    brackets by can carefully choice clear clearly command complete completely concise conclude containing correct
    correctly detail detailed details directly do does efficiently enclose enclosed end ensure exactly explain
    explaining explicitly expression extracted final finally finish first following for form format from full give
    given giving have here hope i in include inner inside is it it's its itself just last latex let let's lets letter
    line logically make math mathematical mathematics method must need never not notation note number of on once only
    option or output own place placed please present problem process provide provided put question quotes reason
    reasoning remember respond response result return should show shown simplest single so solution solve solves
    solving start step steps sure tag tags that the then therefore think thinking this thorough thoroughly thought
    thoughts to us use user using value when where which will with within without work working would wrap wrapped
    write written you your"""
_CHINESE_WORDS = """
    请你 请 通过 进行 逐步 一步一步 一步步 步骤 地 推理 思考 分析 来 解答 解决 回答 这个 该 以下 下面 数学 问题 题目
    并 把 将 你的 您的 的 最终 最后 答案 结果 放置 放到 放 写 置 填 于 在 到 之 中间 中 内 里面 里 使用 用 给出 输出
    框出 括号 命令"""
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_CHINESE = sorted(_CHINESE_WORDS.split(), key=len, reverse=True)
_TOKEN = re.compile(
    rf"(?P<word>[A-Za-z]+(?:['’][a-z]+)?)|{'|'.join(_CHINESE)}"
    r"|[\s.,:;!?#\"'`“”‘’*_()\[\]{}$\\<>/|，。：；、（）—–-]"
)
_MARK = re.compile(r"boxed|step[ -]by[ -]step|answer\W{0,3}:|\$answer|without quotes|####|逐步|一步", re.IGNORECASE)
_HINTS = ("boxed", "step", "answer", "quotes", "####", "逐步", "一步")  # every mark holds one

# Where a sentence starts: behind another, on a line, or, where nothing ends the question, at a word that opens orders.
_OPENERS = (
    r"Let['’]?s|Let us|Please|Remember|Return|Put|Solve|Think|Reason|Present|Output|Make|You|Your|The|Give|Provide|Show"
    r"|Write|Enclose|Place|Ensure|Note|Explain|Conclude|Wrap|Use"
)
_STARTS = re.compile(
    rf"(?:^|(?<=[\s.!?:;$)\]}}*]))(?=(?:{_OPENERS})\b)|(?:^|(?<=[.!?]\s)|(?<=\n)|(?<=[。？！：，]))(?=\S)"
)
_ENDS = re.compile(r"[.!?:]?[\"'”*)]{0,3}(?:\n|$)|[.!?][\"'”*)]{0,3}\s|[。！？]")


def without_instructions(question: str) -> str:
    """The question without the instructions that it opens or ends with, and without white space around it.

    A text that is an instruction through and through gives "".
    """
    question = question.strip()
    for one_less in (_without_last, _without_first):
        before = None
        while question != before:
            before, question = question, one_less(question).strip()
    return question


def _without_first(text: str) -> str:
    marks = _marks(text, 0)
    for match in _ENDS.finditer(text, 0, _MOST) if marks else ():
        if marks[0].end() <= match.end() and _says_only(text[: match.end()]):
            return text[match.end() :]
    return text


def _without_last(text: str) -> str:
    window = max(len(text) - _MOST, 0)
    marks = _marks(text, window)
    starts = [match.start() for match in _STARTS.finditer(text, window, marks[-1].start() + 1)] if marks else []
    for start in reversed(starts):
        if _says_only(text[start:]):
            return text[:start]
    return text


def _marks(text: str, start: int) -> list[re.Match[str]]:
    lower = text[start : start + _MOST].lower()
    if not any(hint in lower for hint in _HINTS):  # most questions: thirty times as fast as the search
        return []
    return list(_MARK.finditer(text, start, start + _MOST))


def _says_only(text: str) -> bool:
    """Whether the text is made of the words of instructions."""
    text, place = _BOX.sub(" boxed ", text), 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None or (token["word"] and token["word"].lower().replace("’", "'") not in _ENGLISH):
            return False
        place = token.end()
    return True
