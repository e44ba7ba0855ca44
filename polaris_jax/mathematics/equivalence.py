"""The verdict on one boxed answer: text first, then what the text means."""

import importlib
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from enum import StrEnum
from itertools import product
from types import ModuleType

from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics import words
from polaris_jax.mathematics.arithmetic import NotANumber, TooLarge
from polaris_jax.mathematics.compare import same_answer
from polaris_jax.mathematics.intervals import infinity
from polaris_jax.mathematics.numeric import approximate
from polaris_jax.mathematics.reader import Reading, read
from polaris_jax.mathematics.repairs import with_single_backslashes
from polaris_jax.mathematics.tokens import Unreadable
from polaris_jax.mathematics.undecided import asks_for_sympy, may_ask_for_sympy, unknown


class Comparison(StrEnum):
    """What comparing an answer with ground truths gives."""

    EQUAL = "equal"
    UNEQUAL = "unequal"
    UNPARSABLE = "unparsable"  # the answer, or every ground truth, cannot be read


importing_sympy: ContextVar[Callable[[], AbstractContextManager[None]]] = ContextVar(
    "importing_sympy", default=nullcontext
)
"""Makes the context in which sympy is imported, the first time that values do not decide."""
_SYMBOLIC = "polaris_jax.mathematics.symbolic"
_COMMA_GROUP = re.compile(r"[0-9],[1-9][0-9]{2}")
_SLASH_LETTERS = re.compile(r"/\s*(?:[A-Za-z]|\\[A-Za-z]+ ?)[A-Za-z_\\]")
_ZERO_GROUP = re.compile(r",0[0-9]")  # 1,000 is no list


def judge(box: str, answers: list[str]) -> Comparison:
    """EQUAL if the box equals any of the ground truths, else UNEQUAL, or UNPARSABLE if none could be compared.

    Takes whatever time and memory the text asks for within the bounds of its parts: run it in a worker.
    """
    found = {_judge_one(box, gold) for gold in answers}
    if Comparison.EQUAL not in found and any(_same_by_sympy(box, gold) for gold in answers):
        return Comparison.EQUAL
    return next((one for one in (Comparison.EQUAL, Comparison.UNEQUAL) if one in found), Comparison.UNPARSABLE)


def _judge_one(box: str, gold: str) -> Comparison:
    box, gold = with_single_backslashes(box.strip()), with_single_backslashes(gold.strip())
    if words.same_choice(gold, box):
        return Comparison.EQUAL
    if words.is_time(gold):
        return _comparison(words.same_words(gold, box))
    try:
        gold_trees, box_trees = _trees(gold), _trees(box)
        if _same_text(gold, box):
            return _comparison(not gold_trees or not _is_undefined(gold_trees[0]))
        if any(isinstance(tree, n.Words) for tree in gold_trees[:1] + box_trees[:1]) and words.same_words(gold, box):
            return Comparison.EQUAL
        if not gold_trees or not box_trees:
            return Comparison.UNPARSABLE
        return _comparison(any(same_answer(first, second) for first, second in product(gold_trees, box_trees)))
    except MemoryError:
        raise
    except Exception:  # whatever else a hostile text brings about, other ground truths may still be equal
        return Comparison.UNPARSABLE


def _same_by_sympy(box: str, gold: str) -> bool:
    """Whether sympy shows what values did not; it is imported only where there is something for it to do."""
    if not may_ask_for_sympy(gold, box):
        return False
    try:
        trees = [_read(with_single_backslashes(text.strip()), Reading(calculus=True)) for text in (gold, box)]
        if not all(trees) or not (any(asks_for_sympy(tree) for (tree,) in trees) or unknown(trees[0][0])):
            return False
        return _sympy().same_by_sympy(trees[0][0], trees[1][0])
    except MemoryError:
        raise
    except Exception:  # a hostile text: other ground truths may still be equal
        return False


def _sympy() -> ModuleType:
    """The module that imports sympy, which a process keeps."""
    if _SYMBOLIC not in sys.modules:
        with importing_sympy.get()():
            importlib.import_module(_SYMBOLIC)
    return sys.modules[_SYMBOLIC]


def _comparison(equal: bool) -> Comparison:
    return Comparison.EQUAL if equal else Comparison.UNEQUAL


def _trees(text: str) -> list[n.Node]:
    """The different trees that the text can be read into; none if it cannot be read."""
    trees = _read(text, Reading())
    if _COMMA_GROUP.search(text) and not _ZERO_GROUP.search(text):
        trees += _read(text, Reading(comma_groups=False))
    if "+-" in text:
        trees += _read(text, Reading(plus_minus=True))
    if any(n.contains(tree, n.Quantity) for tree in trees):
        trees += _read(text, Reading(unit_letters=False))
    if _SLASH_LETTERS.search(text):
        trees += _read(text, Reading(tight_letters=True))
    return trees


def _read(text: str, reading: Reading) -> list[n.Node]:
    try:
        return [read(text, reading)]
    except (Unreadable, ZeroDivisionError):
        return []


def _same_text(gold: str, box: str) -> bool:
    first, second = _compact(gold), _compact(box)
    return first == second and bool(re.search(r"\w", first))


def _compact(text: str) -> str:
    """The text without what never changes its meaning."""
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|(?<!\\)\$", "", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\[,;:! ]|\s+", " ", text)
    text = re.sub(r"(?<![0-9]) +| +(?![0-9])", "", text)  # 3 8 5 is not 385
    return text.rstrip(".")


def _is_undefined(tree: n.Node) -> bool:
    """Whether the tree is a constant without a value, such as 1/0 or the difference of two infinities."""
    if not isinstance(tree, n.Call) or n.free_symbols(tree) or infinity(tree):
        return False
    try:
        approximate(tree)
    except NotANumber:
        return not n.contains(tree, (n.Seq, n.Matrix, n.SetOp, n.Words))
    except TooLarge:
        pass
    return False
