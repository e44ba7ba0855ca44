"""Which text is the answer, and which texts are right."""

import numpy as np
import pandas as pd
import pytest

from polaris_jax.rewards.answers import alternatives, final_box, judge_integers, last_box
from polaris_jax.rewards.verdict import Reason


@pytest.mark.parametrize(
    ("response", "box"),
    [
        ("<think>\\boxed{1}</think> \\boxed{2}", "2"),
        ("</think>\\boxed{1} then \\boxed{2}", "2"),
        ("a</think>\\boxed{1}</think>\\boxed{2}", "2"),
        ("</think>\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("</think>\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("</think>\\boxed{a\\\\b}", "a\\\\b"),
        ("</think>\\boxed{x = \\boxed{5}}", "5"),
        ("</think>\\boxed {7}", "7"),
        ("</think>\\boxed\n{7}", "7"),
        ("</think>\\boxed{ \\boxed{7}", "7"),
        ("</think>{{{ \\boxed{7}", "7"),
        ("</think>}}} \\boxed{7}}}", "7"),
        ("</think>\\boxed{}", ""),
        ("</think>\\fbox{42}", "42"),
        ("\\boxed{1}</think>\\fbox{41} or \\fbox {\\frac{1}{2}}", "\\frac{1}{2}"),
        ("</think>\\boxed{41} \\fbox{42}", "41"),
    ],
)
def test_last_complete_box_after_last_think_wins(response, box):
    assert final_box(response) == box


@pytest.mark.parametrize("response", ["\\boxed{1}", "<think>\\boxed{1}", "", "</think \\boxed{1}"])
def test_without_end_of_thinking_there_is_no_answer(response):
    assert final_box(response) is Reason.NO_THINK_END


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "\\boxed{42",
        "\\boxed{4\\}",
        "\\boxed 42",
        "\\fbox{42",
        "\\fbox{41} \\boxed{42",
        "\\boxed{42} so \\boxed{43",
        "\\Boxed{42}",
    ],
)
def test_no_complete_box_or_one_cut_short_is_no_answer(text):
    assert final_box("</think>" + text) is Reason.NO_BOX


def test_models_that_do_not_think_are_read_from_the_start():
    assert final_box("so \\boxed{42}", require_think=False) == "42"
    assert final_box("\\boxed{1}</think>\\boxed{42}", require_think=False) == "42"


def test_a_megabyte_of_braces_is_one_pass():
    assert last_box("\\boxed{" * 100_000) is None
    assert last_box("{" * 500_000 + "\\boxed{1}") == "1"


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ("12", ["12"]),
        (12, ["12"]),
        (142.0, ["142.0"]),
        (["1", "2"], ["1", "2"]),
        (("1", ["2", 3]), ["1", "2", "3"]),
        (np.array(["9.6\n"], dtype=object), ["9.6\n"]),
        (np.array([1, 2]), ["1", "2"]),
        (np.float64(4.0), ["4.0"]),
        (np.float32(0.1), ["0.1"]),
        (np.int32(7), ["7"]),
        (np.array(7), ["7"]),
        (np.str_("x"), ["x"]),
        (pd.Series(["a", None, "b"]), ["a", "b"]),
        (b"17", ["17"]),
        (None, []),
        ("  ", []),
        ([], []),
        (float("nan"), []),
        ("NaN", []),
        ('["27"]', ["27"]),
        ("['70']", ["70"]),
        ("['1', '2']", ["1", "2"]),
        ('["\\\\frac{9}{2}"]', ["\\frac{9}{2}"]),
        ('["\\frac{9}{2}"]', ["\\frac{9}{2}"]),
        (["['70']"], ["70"]),
        ("[]", ["[]"]),
        ("[1, 2]", ["[1, 2]"]),
        ("['']", []),
        ("proof", []),
        ("\\text{Proof.}", []),
        ("notfound", []),
        ("N/A", []),
        ("see solution", []),
        ("proof by cases", ["proof by cases"]),
        (pd.NA, []),
        (pd.NaT, []),
    ],
)
def test_ground_truths_come_as_text_numbers_lists_and_arrays(answer, texts):
    assert alternatives(answer) == texts


@pytest.mark.parametrize(
    ("box", "golds", "reason"),
    [
        ("42", ["42"], Reason.EQUAL),
        (" 042 ", ["42.0"], Reason.EQUAL),
        ("-1", ["2", "-1"], Reason.EQUAL),
        ("43", ["42"], Reason.UNEQUAL),
        ("42", ["\\frac{84}{2}"], None),
        ("4 2", ["42"], None),
        ("4.2", ["42"], None),
        ("٤٢", ["42"], None),
        ("9" * 5000, ["42"], None),
    ],
)
def test_plain_integers_need_no_worker(box, golds, reason):
    assert judge_integers(box, golds) is reason
