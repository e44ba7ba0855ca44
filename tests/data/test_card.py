"""A dataset that is written comes back the same, and its card says what is in it."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_jax.data.arithmetic import build_tokenizer
from polaris_jax.data.card import (
    RELEASED_COLUMNS,
    difficulty,
    difficulty_picture,
    histogram,
    write_dataset,
    write_parquet,
)
from polaris_jax.data.prepare import prepare
from polaris_jax.data.problems import BENCHMARKS, SUFFIX, benchmark, load_problems, problem_id
from polaris_jax.errors import UserError
from polaris_jax.types import Problem

PROBLEMS = [
    Problem(problem_id(f"q{i}"), f"q{i} {SUFFIX}", answers, "s", accuracy)
    for i, (answers, accuracy) in enumerate([(("1",), 0.0), (("a", "b"), 0.375), (("2.50",), 1.0), (("x",), None)])
]


def test_a_written_dataset_is_read_back_the_same(tmp_path):
    write_dataset(tmp_path / "d", PROBLEMS, title="Four")
    assert load_problems(tmp_path / "d") == PROBLEMS
    assert tuple(pd.read_parquet(tmp_path / "d" / "problems.parquet").columns) == RELEASED_COLUMNS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_are_written_with_the_released_columns(tmp_path, name):
    write_parquet(tmp_path / f"{name}.parquet", benchmark(name), split="test")
    assert load_problems(tmp_path / f"{name}.parquet") == benchmark(name)


def test_the_card_says_what_is_there(tmp_path):
    write_dataset(tmp_path, PROBLEMS, title="Four", history=["Taken from nowhere."])
    text = (tmp_path / "README.md").read_text()
    for line in ["# Four", "4 problems in", "| s | 4 |", "1. Taken from nowhere.", "several right answers: 1."]:
        assert line in text
    assert "known for 3 problems, mean 0.458" in text
    assert "| 3 | 1 |" in text
    assert (tmp_path / "difficulty.png").stat().st_size > 1000


def test_without_accuracies_there_is_no_picture(tmp_path):
    write_dataset(tmp_path, PROBLEMS[3:], title="One")
    assert "Not measured." in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "difficulty.png").exists()
    with pytest.raises(ValueError, match="without problems"):
        write_dataset(tmp_path, [], title="None")


def test_histogram_by_hand():
    np.testing.assert_array_equal(histogram([0, 0, 0.125, 0.5, 1], 8), [2, 1, 0, 0, 1, 0, 0, 0, 1])


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(1, 16))
def test_a_difficulty_keeps_its_value(pair, rollouts):
    k, n = pair
    right, total = map(int, difficulty(k / n, rollouts).split("/"))
    assert right / total == k / n


def test_prepare_leaves_out_what_it_should_and_says_so(tmp_path):
    asked = benchmark("aime25")[0].question
    rows = [
        {"problem": "Start with 37, first +5. What is the result?", "answer": "42"},
        {"problem": asked, "answer": "70"},
        {"problem": "Start with " * 60, "answer": "1"},
        {"problem": "empty", "answer": ""},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text('{"question": "START with $37$, first +5. What is the result?", "answer": 42}\n')
    build_tokenizer(SUFFIX).save_pretrained(tmp_path / "tokenizer")
    sources = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    out = tmp_path / "out"
    prepared = prepare(sources, out, tokenizer=str(tmp_path / "tokenizer"), max_prompt_tokens=60)
    assert [problem.answers for problem in prepared.problems] == [("42",)]
    assert load_problems(out) == prepared.problems
    assert (out / "skipped.txt").read_text() == "a.jsonl line 4: answer is empty\n"
    assert pd.read_csv(out / "repeats.csv")["same_answer"].tolist() == [True]
    assert pd.read_csv(out / "overlaps.csv")[["benchmark", "share"]].to_numpy().tolist() == [["aime25", 1.0]]
    assert prepared.history == [
        f"{sources[0]}: 3 problems; 1 rows left out, see skipped.txt.",
        f"{sources[1]}: 1 problems; 0 rows left out, see skipped.txt.",
        "Ground truths that cannot be verified: 0 problems left out, see skipped.txt.",
        "Repeats across sources: 1 left out, 0 of them with another answer.",
        "Shared 10 words in a row with a benchmark: 1 left out (aime25 1). "
        "1 of them hold more than half of its question.",
        "Prompts over 60 tokens: 1 left out.",
    ]
    assert all(line in (out / "README.md").read_text() for line in prepared.history)


def test_prepare_with_nothing_left_writes_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"problem": benchmark("aime24")[0].question, "answer": "204"}))
    with pytest.raises(UserError, match="no problem is left"):
        prepare([str(tmp_path / "a.jsonl")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_kept_stands_in_front_of_what_was_measured():
    figure = difficulty_picture({"measured": [0, 0, 0.5, 1], "kept": [0.5]}, rollouts=2)
    (axes,) = figure.axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[2, 1, 1], [0, 1, 0]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["measured: 4", "kept: 1"]
