"""Repeats are found through their dress, and what a benchmark asks does not get into training."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_jax.data.cleaning import decontaminate, deduplicate, verifiable
from polaris_jax.data.problems import BENCHMARKS, SUFFIX, benchmark, problem_id
from polaris_jax.types import Problem


def ask(question, *answers, source="s"):
    return Problem(problem_id(question), f"{question} {SUFFIX}", answers or ("1",), source)


@pytest.mark.parametrize(
    "twin",
    [
        "What is $\\frac{1}{2}+\\left(x\\right)$?",
        "what is\n$\\dfrac{1}{2} + (x)$ ?",
        "What is \\(\\frac{1}{2}\\,+\\,(x)\\)?",
    ],
)
def test_dress_does_not_make_a_question_new(twin):
    first, second = ask("What is \\frac{1}{2} + (x)?", "1", "2"), ask(twin, "2", source="other")
    kept, repeats = deduplicate([first, second])
    assert kept == [first]
    assert [(repeat.problem, repeat.first, repeat.same_answer) for repeat in repeats] == [(second, first, True)]


@pytest.mark.parametrize(
    ("one", "other"), [("1+1", "1-1"), ("x_1", "x^1"), ("1.5", "15"), ("a<b", "a>b"), ("\\leftarrow", "\\rightarrow")]
)
def test_every_sign_counts(one, other):
    assert len(deduplicate([ask(one), ask(other)])[0]) == 2


def test_problems_that_no_response_can_be_right_on_are_left_out_and_listed():
    good = [ask("a", "142"), ask("b", "\\frac{1}{2}"), ask("c", "Monday"), ask("d", "}{", "7")]
    bad = [ask("e", "}{"), ask("f", "\\frac{1}{0}"), ask("g", "$$", "??")]
    kept, faults = verifiable([*good, *bad])
    assert kept == good
    assert [problem.id in fault for problem, fault in zip(bad, faults, strict=True)] == [True] * 3
    assert "'$$', '??'" in faults[2]


def test_every_benchmark_problem_can_be_answered_right():
    for name in BENCHMARKS:
        assert verifiable(benchmark(name))[1] == []


def test_repeats_with_another_answer_are_marked():
    (repeat,) = deduplicate([ask("q", "1"), ask("Q", "2")])[1]
    assert not repeat.same_answer


@given(st.lists(st.sampled_from("abcd ABCD$")))
def test_deduplication_keeps_one_of_each_and_loses_none(questions):
    problems = [ask(question) for question in questions]
    kept, repeats = deduplicate(problems)
    assert len(kept) + len(repeats) == len(problems)
    assert deduplicate(kept) == (kept, [])
    assert {repeat.first.id for repeat in repeats} <= {problem.id for problem in kept}


WORDS = [f"w{i}" for i in range(30)]


def test_ten_words_in_a_row_are_too_many_and_nine_are_not():
    asked = ask(" ".join(WORDS[:20]))
    ten, nine = ask("x " + " ".join(WORDS[5:15]) + " y"), ask("x " + " ".join(WORDS[5:14]) + " y")
    kept, (overlap,) = decontaminate([ten, nine], [asked])
    assert kept == [nine]
    assert (overlap.problem, overlap.asked) == (ten, asked)
    assert overlap.shared == " ".join(WORDS[5:15])
    assert overlap.share == 1 / 11  # of the 11 runs of ten words in twenty


def test_case_and_signs_between_words_do_not_hide_a_copy():
    asked = ask(" ".join(WORDS[:12]))
    assert decontaminate([ask("$" + "$, ".join(WORDS[:12]).upper())], [asked])[0] == []


def test_the_suffix_alone_is_no_overlap():
    long_suffix = [ask("Prove it"), ask("Show it")]
    assert decontaminate([ask("Find it")], long_suffix) == ([ask("Find it")], [])


def test_a_short_question_counts_as_a_whole():
    assert decontaminate([ask("What is 2+3?")], [ask("what is 2 + 3")])[0] == []
    longer = ask("What is 2+3 and why?")
    assert decontaminate([longer], [ask("what is 2 + 3")])[0] == [longer]


def test_threshold_spares_common_phrases_but_no_copies():
    phrase = "where m and n are relatively prime positive integers find m n"
    asked = ask(" ".join(WORDS) + " " + phrase)
    innocent, copy = ask("Another question " + phrase), ask(" ".join(WORDS[:25]))
    assert decontaminate([innocent, copy], [asked])[0] == []
    assert decontaminate([innocent, copy], [asked], threshold=0.2)[0] == [innocent]


def test_every_benchmark_is_found_in_itself():
    asked = [problem for name in BENCHMARKS for problem in benchmark(name)]
    kept, overlaps = decontaminate(asked, asked)
    assert kept == []
    assert all(overlap.share == 1 for overlap in overlaps)
