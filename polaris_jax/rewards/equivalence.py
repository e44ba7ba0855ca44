"""The verdict on one boxed answer: text first, then what the text means."""

import re
from itertools import product

from polaris_jax.rewards import nodes as n
from polaris_jax.rewards import words
from polaris_jax.rewards.compare import same_answer
from polaris_jax.rewards.evaluate import Env, NotANumber, TooLarge, evaluate
from polaris_jax.rewards.reader import Reading, read
from polaris_jax.rewards.tokens import Unreadable
from polaris_jax.rewards.verdict import Reason

_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")
_READINGS = [Reading(comma_groups, unit_letters) for comma_groups in (True, False) for unit_letters in (True, False)]


def judge(box: str, golds: list[str]) -> Reason:
    """EQUAL if the box equals any of the ground truths, else UNEQUAL, or UNPARSABLE if none could be compared.

    Takes whatever time and memory the text asks for within the bounds of its parts: run it in a worker.
    """
    reasons = {_judge_one(box, gold) for gold in golds}
    return next((reason for reason in (Reason.EQUAL, Reason.UNEQUAL) if reason in reasons), Reason.UNPARSABLE)


def _judge_one(box: str, gold: str) -> Reason:
    box, gold = box.strip(), gold.strip()
    if _INTEGER.fullmatch(box) and _INTEGER.fullmatch(gold):
        return _reason(int(box) == int(gold))
    if words.same_choice(gold, box):
        return Reason.EQUAL
    try:
        gold_trees, box_trees = _trees(gold), _trees(box)
        if _same_text(gold, box):
            return _reason(not gold_trees or not _is_undefined(gold_trees[0]))
        if any(isinstance(tree, n.Words) for tree in gold_trees[:1] + box_trees[:1]) and words.same_words(gold, box):
            return Reason.EQUAL
        if not gold_trees or not box_trees:
            return Reason.UNPARSABLE
        return _reason(any(same_answer(first, second) for first, second in product(gold_trees, box_trees)))
    except RecursionError:
        return Reason.UNPARSABLE


def _reason(equal: bool) -> Reason:
    return Reason.EQUAL if equal else Reason.UNEQUAL


def _trees(text: str) -> list[n.Node]:
    """The different trees that the text can be read into; none if it cannot be read."""
    trees: list[n.Node] = []
    for reading in _READINGS:
        try:
            tree = read(text, reading)
        except (Unreadable, ZeroDivisionError):
            continue
        if tree not in trees:
            trees.append(tree)
    return trees


def _same_text(gold: str, box: str) -> bool:
    first, second = _compact(gold), _compact(box)
    return first == second and bool(re.search(r"\w", first)) and first.lower() not in ("nan", "none", "null")


def _compact(text: str) -> str:
    """The text without what never changes its meaning."""
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|(?<!\\)\$", "", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\[,;:! ]|\s+", " ", text)
    text = re.sub(r"(?<![0-9]) +| +(?![0-9])", "", text)  # 3 8 5 is not 385
    return text.rstrip(".")


def _is_undefined(tree: n.Node) -> bool:
    """Whether the tree is a constant without a value, such as 1/0."""
    if n.free_symbols(tree) or n.contains(tree, (n.Words, n.Seq, n.Relation, n.Matrix, n.SetOp, n.Builder, n.Ratio)):
        return False
    if any(isinstance(part, n.Const) and part.name not in ("pi", "e", "i") for part in n.walk(tree)):
        return False
    try:
        evaluate(tree, Env())
    except NotANumber:
        return True
    except Exception as error:
        if not isinstance(error, TooLarge):
            return False
    return False
