"""The policy, case by case: what is right and what is not."""

import csv
import json
from collections import defaultdict
from pathlib import Path

import pytest

from polaris_jax.mathematics import Comparison, judge
from polaris_jax.rewards.answers import alternatives, final_box
from polaris_jax.rewards.verdict import Reason

DATA = Path(__file__).with_name("data")
FILES = ("examples.jsonl", "reports.jsonl")  # the policy, and what users of verifiers reported
EXAMPLES = [json.loads(line) for name in FILES for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def cases_by_kind():
    """Rows of cases.tsv: (verdict, gold, box) for each kind."""
    kinds = defaultdict(list)
    with (DATA / "cases.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            kinds[row["kind"]].append((row["verdict"] == "right", row["gold"], row["box"]))
    return kinds


CASES = cases_by_kind()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["kind"])
def test_examples_of_the_policy(example):
    box = final_box(example["response"])
    golds = alternatives(example["answer"])
    reason = box if isinstance(box, Reason) or not golds else judge(box, golds)
    assert (reason is Comparison.EQUAL) == example["correct"], (example["answer"], box)


@pytest.mark.parametrize("kind", CASES)
def test_near_misses_and_equal_forms(kind):
    differing = [
        (gold, box, reason)
        for right, gold, box in CASES[kind]
        if ((reason := judge(box, [gold])) is Comparison.EQUAL) != right
    ]
    assert not differing


def test_any_alternative_is_right():
    assert judge("0.5", ["2", "\\frac12"]) is Comparison.EQUAL
    assert judge("3", ["2", "\\frac12"]) is Comparison.UNEQUAL


def test_an_unreadable_alternative_does_not_hide_a_right_one():
    assert judge("5", ["\\frac{", "5.0"]) is Comparison.EQUAL
    assert judge("5", ["\\frac{"]) is Comparison.UNPARSABLE


def test_unreadable_text_equals_itself():
    answer = "f(x)=ax+b, \\text{ where } b \\text{ is an arbitrary integer}"
    assert judge(answer, [answer]) is Comparison.EQUAL


@pytest.mark.parametrize("text", ["\\frac{1}{0}", "0^0", "\\infty-\\infty", "\\tan\\frac{\\pi}{2}", "\\ln 0", "?", "="])
def test_what_has_no_value_does_not_even_equal_itself(text):
    assert judge(text, [text]) is not Comparison.EQUAL
