"""What is an answer, how lists of them are written, and what only says that there is none."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_jax.data.ground_truths import parse_answers
from polaris_jax.data.problems import load_problems, parse_problem
from polaris_jax.data.rows import RowError


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ('["27"]', ("27",)),
        ("['70']", ("70",)),
        ('["1", "2"]', ("1", "2")),
        ("['1' '2']", ("1", "2")),  # as numpy prints it
        ("('70',)", ("70",)),
        ('[["1"], [["2"]]]', ("1", "2")),
        (r'["[\"27\"]"]', ("27",)),
        ('["27", 3, null, -1.5]', ("27", "3", "-1.5")),
        (['["27"]', "28"], ("27", "28")),
        ([["1"], [2.0]], ("1", "2")),
        ('"27"', ("27",)),
        (r'["\\frac{1}{2}"]', (r"\frac{1}{2}",)),
        (r'["\frac{1}{2}"]', (r"\frac{1}{2}",)),  # not escaped as it should be
        (r"['2\times3', '\neq 1']", (r"2\times3", r"\neq 1")),
        (r"['\\sqrt{2}']", (r"\sqrt{2}",)),
        (r'["\\{1,2\\}"]', (r"\{1,2\}",)),
        (r'["\{1,2\}"]', (r"\{1,2\}",)),
        ('["9.6\\n"]', ("9.6",)),
        (r'["x \\text{ or \"y\"}"]', (r'x \text{ or "y"}',)),
        ("""["f'(2)", 'a"b']""", ("f'(2)", 'a"b')),
        ('["\\u221a2"]', ("√2",)),
        (r'["\\boxed{4}"]', ("4",)),
        (r"[\"27\"]", ("27",)),
        ("[27]", ("27",)),
        # one mathematical answer each
        ("[1, 2]", ("[1, 2]",)),
        ("[1,2)", ("[1,2)",)),
        ("(1,2)", ("(1,2)",)),
        ("[[1, 2], [3, 4]]", ("[[1, 2], [3, 4]]",)),
        ("[0, \\frac{1}{2}]", ("[0, \\frac{1}{2}]",)),
        ("[f'(1), f'(2)]", ("[f'(1), f'(2)]",)),
        ('["1", "2"] or ["3"]', ('["1", "2"] or ["3"]',)),
        ('["1"', ('["1"',)),
        ('["1"]]', ('["1"]]',)),
    ],
)
def test_lists_in_texts(value, answers):
    assert parse_answers(value) == answers


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])), min_size=1), st.booleans())
def test_a_list_in_a_text_is_the_list(texts, python):
    def told(value):
        try:
            return parse_answers(value)
        except RowError as error:
            return str(error)

    assert told(repr(texts) if python else json.dumps(texts)) == told(texts)


def test_hostile_lists_are_read_in_time_and_nothing_of_them_is_evaluated():
    began = time.perf_counter()
    for text in ("[" * 19_000, "[" * 9000 + '"1"' + "]" * 9000, "['" + "\\" * 19_000, "[" + '"1",' * 4000, '["' * 9000):
        assert parse_answers(text) in ((text,), ("1",))
    assert parse_answers("['1', __import__('os')]") == ("['1', __import__('os')]",)
    assert time.perf_counter() - began < 5


NO_ANSWERS = [
    "proof", "Proof.", "PROOF", r"\text{proof}", r"\boxed{\text{Proof}}", "(proof)", r"proof $\blacksquare$", "proved",
    "Q.E.D.", "notfound", "Not found", "not_found", "NotFound", "N/A", "n/a", "NA", r"\text{N/A}", "null", "unknown",
    "not given", "see solution", "See the solution.", "See explanation", "see above", "see figure", "no answer",
    "Refer to the solution", "No final answer given", "answer not found", "not applicable", "Answers may vary",
    "to prove", "证明", "证明见解析", "见解析", "略", "答案见解析", "(证明略)", "未找到", "无答案", ["proof", "N/A"],
    '["proof"]', "n.a.", "`proof`", "Not mentioned", "There is no answer", "见详解", "解：略", "#N/A", "<not found>",
]  # fmt: skip


@pytest.mark.parametrize("value", NO_ANSWERS)
def test_no_answer_is_no_ground_truth(value):
    with pytest.raises(RowError, match=r"answer .* is no answer"):
        parse_answers(value)


ANSWERS = [
    "none", "None", "no solution", "No solutions", "DNE", "does not exist", "undefined", "not defined", "0",
    "impossible", "cannot be determined", r"\text{no real solutions}", r"\emptyset", "None of the above", "yes", "no",
    "true", "A", "n", "infinitely many", "not enough information", "not possible", "无解", "无", "不存在", "empty set",
    "null set", "Na", "n/2", r"\frac{n}{a}", "e", "all real numbers", "the second", "waterproof", "12 proof",
]  # fmt: skip


@pytest.mark.parametrize("value", ANSWERS)
def test_answers_that_only_look_like_none(value):
    assert parse_answers(value) == (value,)


def test_an_alternative_that_is_no_answer_leaves_the_others():
    assert parse_answers(["proof", "3"]) == ("3",)


def test_rows_without_an_answer_are_left_out_counted_and_listed(tmp_path, caplog):
    path = tmp_path / "numina.jsonl"
    rows = [{"problem": f"q{i}", "answer": answer} for i, answer in enumerate(["1", "proof", "notfound"])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    skipped = []
    assert [problem.answers for problem in load_problems(path, skipped=skipped)] == [("1",)]
    assert skipped == [
        "numina.jsonl line 2: answer 'proof' is no answer",
        "numina.jsonl line 3: answer 'notfound' is no answer",
    ]
    assert "2 rows of" in caplog.text


@pytest.mark.parametrize("empty", [None, "", "  ", [], [None, ""], float("nan")])
def test_the_next_column_that_has_a_value(empty):
    assert parse_problem({"question": "q", "answer": empty, "solutions": ["5"]}).answers == ("5",)
    released = {"problem": "q", "reward_model": {"ground_truth": empty}, "answer": "5"}
    assert parse_problem(released).answers == ("5",)
    if isinstance(empty, str | None):
        row = {"problem": empty, "question": "q", "answer": "5"}
        assert parse_problem(row, suffix="").question == "q"


def test_where_every_column_is_empty_that_is_said():
    with pytest.raises(RowError, match="answer is empty"):
        parse_problem({"question": "q", "answer": None, "solutions": []})
    with pytest.raises(RowError, match="question is empty"):
        parse_problem({"problem": "", "question": " ", "answer": "1"})
