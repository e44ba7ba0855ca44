"""Problems that are no mathematics, and datasets of the hub with the columns that they have there."""

import json

import pytest

from polaris_jax.data import gym
from polaris_jax.data.card import write_dataset
from polaris_jax.data.cleaning import verifiable
from polaris_jax.data.problems import HUB_BENCHMARKS, SUFFIX, load_problems
from polaris_jax.errors import UserError
from polaris_jax.evaluation.job import load_benchmarks
from polaris_jax.runs.start import load_train_problems
from tests.conftest import smaller_config


def load(path, *rows, **settings):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(path, **settings)


def test_choices_are_put_behind_the_question_and_the_answer_is_a_letter(tmp_path):
    options = ["3", "4", "5", "22"]
    rows = [
        {"question": "What is 2+2?", "choices": options, "answer": 1},  # as in MMLU
        {"question": "What is 2 + 3?", "options": options, "answer": "C"},
        {"question": "What is 2+20?", "choices": {"text": options, "label": list("ABCD")}, "answer": "22"},
        {"question": "Which are odd? A. 1 B. 2 C. 3", "kind": "choice", "answer": "A, C"},
    ]
    found = load(tmp_path / "choices.jsonl", *rows)
    assert [(problem.kind, problem.answers) for problem in found] == [
        ("choice", ("B",)), ("choice", ("C",)), ("choice", ("D",)), ("choice", ("AC",)),
    ]  # fmt: skip
    assert found[0].question == f"What is 2+2?\nA. 3\nB. 4\nC. 5\nD. 22 {SUFFIX}"
    assert found[3].question == f"Which are odd? A. 1 B. 2 C. 3 {SUFFIX}"


def test_rows_that_only_look_like_choices_stay_mathematics(tmp_path):
    (found,) = load(tmp_path / "x.jsonl", {"problem": "2+2?", "options": ["3", "5"], "answer": "4"})
    assert (found.kind, found.answers) == ("math", ("4",))


def test_bad_kinds_and_choices_are_skipped_in_words(tmp_path):
    rows = [
        {"question": "a?", "answer": "x", "kind": "exact"},
        {"question": "b?", "answer": "x", "kind": "code"},
        {"question": "c?", "answer": "E", "choices": ["1", "2"], "kind": "choice"},
        {"question": "d?", "answer": "", "kind": "exact"},
    ]
    (found,) = load(tmp_path / "x.jsonl", *rows, skipped=(skipped := []))
    assert (found.kind, found.answers) == ("exact", ("x",))
    assert skipped == [
        "x.jsonl line 2: kind is 'code', expected one of math, choice, exact, reasoning_gym",
        "x.jsonl line 3: answer 'E' names none of the 2 choices",
        "x.jsonl line 4: answer is empty",
    ]


def test_a_dataset_that_was_written_reads_as_it_was(tmp_path):
    rows = [
        {"question": "What is 2+2?", "choices": ["3", "4"], "answer": 1},
        {"question": "Write level.", "answer": '["level"]', "kind": "exact"},
        {"problem": "What is 1+1?", "answer": "2"},
    ]
    found = load(tmp_path / "x.jsonl", *rows)
    assert load_problems(write_dataset(tmp_path / "out", found, title="t")) == found
    assert verifiable(found) == (found, [])


@pytest.mark.parametrize(
    ("name", "row", "answers"),
    [
        ("gsm8k", {"question": "How many?", "answer": "He has 1,000 <<1000*2=2000>>2000.\n#### 2,000"}, ("2000",)),
        ("math500", {"problem": "$x$?", "solution": "So \\boxed{\\frac12}.", "answer": "\\frac12", "subject": "Algebra",
                     "level": 2, "unique_id": "test/algebra/1.json"}, ("\\frac12",)),
        ("aime26", {"problem_idx": 1, "answer": 277, "problem": "Find it."}, ("277",)),
        ("hmmt25", {"problem_idx": 1, "problem": "Find it.", "answer": "\\frac{1}{576}",
                    "problem_type": ["Number Theory"]}, ("\\frac{1}{576}",)),
    ],
)  # fmt: skip
def test_benchmarks_of_the_hub_are_read_with_their_columns(tmp_path, monkeypatch, name, row, answers):
    path = tmp_path / "theirs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    asked = []

    def hub(source, **settings):
        asked.append(source)
        return load_problems(path, **settings)

    monkeypatch.setattr("polaris_jax.evaluation.job.load_problems", hub)
    place = HUB_BENCHMARKS[name]
    for called in (name, place.partition(":")[0]):
        (found,) = load_benchmarks([f"{called}:4"], suffix=SUFFIX)
        assert (found.answers, found.source, found.kind) == (answers, called, "math")
    assert asked == [place, place]


def test_configuration_and_split_of_a_hub_dataset(monkeypatch):
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *names, split: asked.append((*names, split)) or [])
    for source in ("a/b", "a/b:test", "a/b:main:test"):
        with pytest.raises(UserError, match="has no rows"):
            load_problems(source)
    assert asked == [("a/b", "train"), ("a/b", "test"), ("a/b", "main", "test")]


def test_reasoning_gym_gives_distinct_problems_in_two_splits_that_its_scorers_take(tmp_path, monkeypatch):
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr(gym, "PROBLEMS", 40)
    source = "reasoning_gym:chain_sum, spell_backward"
    found = load_train_problems(smaller_config(**{"data.train": source}))
    assert {problem.source for problem in found} == {"chain_sum", "spell_backward"}
    assert len({problem.id for problem in found}) == len(found) == 80
    assert found == load_train_problems(smaller_config(**{"data.train": source}))
    assert found != load_train_problems(smaller_config(**{"data.train": source, "seed": 1}))
    held_out = load_benchmarks([source], suffix=SUFFIX, most=10)
    assert len(held_out) == 20
    assert not {problem.id for problem in held_out} & {problem.id for problem in found}
    again = load_problems(write_dataset(tmp_path / "out", found, title="t"))
    assert again == found


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("reasoning_gym:no_such", "reasoning_gym:no_such: reasoning-gym has no such dataset"),
        ("reasoning_gym:countdown", "on what the model wrote"),
        ("reasoning_gym:", "names no dataset"),
    ],
)
def test_sources_of_reasoning_gym_that_cannot_be_used_are_refused(source, message):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match=message):
        gym.problems(source, "train", 4, SUFFIX)
