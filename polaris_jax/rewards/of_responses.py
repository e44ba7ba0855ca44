"""Rewards that read a response, `(response, problem) -> float`; linear in its length."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

from polaris_jax.rewards.answers import THINK_END, last_box
from polaris_jax.types import Problem

REPETITION_WORDS = 40  # of a run that counts as said again; the paper's N
_THINK = "<think>"
_FORMULAS = re.compile(r"\$\$[^$]*\$\$|\$[^$\n]*\$|\\[A-Za-z]+|</?think>")
_EAST_ASIAN = frozenset({"CJK", "HIRAGANA", "KATAKANA"})  # one script here, whose letters count as words


def format_reward(response: str, problem: Problem) -> float:
    r"""1 for thoughts that end once, with an answer and a complete `\boxed{}` behind them, else 0.

    An opening `<think>` may stand at the start or, where the chat template wrote it, not at all. DeepSeek-R1, arXiv
    2501.12948, section 2.2.2.
    """
    thoughts, end, answer = response.partition(THINK_END)
    thoughts = thoughts.lstrip().removeprefix(_THINK)
    sound = end and THINK_END not in answer and _THINK not in thoughts + answer
    return float(bool(sound) and last_box(answer) is not None)


def repetition(response: str, problem: Problem) -> float:
    """Minus the share of runs of `REPETITION_WORDS` words that were there before in the response: from -1 to 0.

    Yeo et al. 2025, Demystifying Long Chain-of-Thought Reasoning, arXiv 2502.03373, appendix C.2; theirs punishes the
    tokens of the runs, this one the response.
    """
    words = response.split()
    starts = range(len(words) - REPETITION_WORDS + 1)
    distinct = {tuple(words[i : i + REPETITION_WORDS]) for i in starts}
    return len(distinct) / len(starts) - 1.0 if distinct else 0.0


def language_consistency(response: str, problem: Problem) -> float:
    """Share of the words of the thoughts, or without thoughts of the response, in the script of the question.

    Formulas and commands do not count; where no word is left it is 1. A script stands for a language here, so that it
    tells Chinese from English, which models mix, and not French from English. DeepSeek-R1, arXiv 2501.12948, section
    2.3.2.
    """
    asked, used = _scripts(problem.question), _scripts(response.partition(THINK_END)[0])
    if not asked or not used:
        return 1.0
    return used[asked.most_common(1)[0][0]] / used.total()


def _scripts(text: str) -> Counter[str]:
    """How many words of each script a text has; letters of East Asian scripts are words of their own."""
    found: Counter[str] = Counter()
    before = ""
    for character in _FORMULAS.sub(" ", text):
        script = _script(character)
        if script and (script == "CJK" or script != before):
            found[script] += 1
        before = script
    return found


@lru_cache(1 << 16)
def _script(character: str) -> str:
    """LATIN, CJK, CYRILLIC, ...; "" for what is no letter."""
    if not character.isalpha():
        return ""
    script = unicodedata.name(character, "").partition(" ")[0]
    return "CJK" if script in _EAST_ASIAN else script
