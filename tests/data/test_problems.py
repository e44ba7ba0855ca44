"""What rows mean, which are left out, and what a user reads when a file is no use."""

import codecs
import json
import logging

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_jax.data import problems as P
from polaris_jax.data.problems import SUFFIX, bare_question, benchmark, chat_rows, load_problems, parse_answers
from polaris_jax.data.rows import RowError
from polaris_jax.errors import UserError


def jsonl(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def released_row(question="What is 1+1? " + SUFFIX, truth="2", **changes):
    row = {
        "data_source": "math",
        "prompt": [{"role": "user", "content": question}],
        "ability": "math",
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": {"index": 0, "split": "train"},
    }
    return row | changes


@pytest.mark.parametrize(
    ("name", "count", "first", "answers"),
    [
        ("aime24", 30, "Every morning Aya goes", ("204",)),
        ("aime25", 30, "Find the sum of all integer bases", ("70",)),
        ("amc23", 83, r"$\frac{m}{n}$ is the Irreducible", ("142",)),  # stored as 142.0
        ("minerva", 272, "If the Bohr energy levels", ("9.6",)),  # stored as ["9.6\n"]
        ("olympiad", 675, "Xenia and Sergey play", ("2",)),
    ],
)
def test_shipped_benchmarks(name, count, first, answers):
    problems = benchmark(name)
    assert len(problems) == len({problem.id for problem in problems}) == count
    assert problems[0].question.startswith(first)
    assert problems[0].answers == answers
    for problem in problems:
        assert problem.source == name
        assert problem.question.endswith(SUFFIX)
        assert problem.question.count(SUFFIX) == 1
        assert all(answer == answer.strip() != "" for answer in problem.answers)


def test_alternatives_are_kept():
    assert next(p.answers for p in benchmark("minerva") if len(p.answers) == 2) == ("0.01", "0.02")


def test_unknown_benchmark_names_the_known_ones():
    with pytest.raises(UserError, match="aime26: no such benchmark; expected one of aime24, aime25"):
        benchmark("aime26")


def test_released_parquet_and_plain_jsonl_give_the_same_problem(tmp_path):
    pd.DataFrame([released_row()]).to_parquet(tmp_path / "a.parquet")
    jsonl(tmp_path / "b.jsonl", [{"problem": "What is 1+1?", "answer": 2}])
    jsonl(tmp_path / "c.jsonl", [{"question": "What is\n1+1?", "answers": ["2"]}])
    boba = {
        "prompt": "<｜User｜>\nWhat is 1+1?\nPlease reason step by step, and put your final answer within "
        "\\boxed{}.<｜Assistant｜><think>\n",
        "task": "math",
        "query_id": "x",
        "solutions": ["\\boxed{2}"],
    }
    jsonl(tmp_path / "d.jsonl", [boba])
    (tmp_path / "e.json").write_text(json.dumps([{"problem": "What is 1+1?", "answer": "2", "solution": "by hand"}]))
    loaded = [load_problems(path)[0] for path in sorted(tmp_path.iterdir())]
    assert {problem.id for problem in loaded} == {loaded[0].id}
    assert {problem.answers for problem in loaded} == {("2",)}
    assert {" ".join(problem.question.split()) for problem in loaded} == {f"What is 1+1? {SUFFIX}"}
    assert [problem.source for problem in loaded] == ["math", "b", "c", "d", "e"]


def test_directory_is_read_in_the_order_of_its_paths_and_repeats_are_left_out(tmp_path):
    jsonl(tmp_path / "b.jsonl", [{"problem": "q1", "answer": "3"}, {"problem": "q2", "answer": "2"}])
    pd.DataFrame({"problem": ["q1"], "answer": ["1"]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "README.md").write_text("not data")
    skipped = []
    assert [p.answers for p in load_problems(tmp_path, suffix="", skipped=skipped)] == [("1",), ("2",)]
    assert skipped == ["b.jsonl line 1: same question as a.parquet row 1, with another answer"]


def test_saved_dataset_and_hub_name(tmp_path, monkeypatch):
    dataset = datasets.Dataset.from_list([released_row()])
    dataset.save_to_disk(tmp_path / "saved")
    assert load_problems(tmp_path / "saved")[0].answers == ("2",)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or dataset)
    assert load_problems("owner/name")[0].answers == load_problems("owner/name:test")[0].answers == ("2",)
    assert asked == [("owner/name", "train"), ("owner/name", "test")]


def test_hub_that_does_not_answer_is_a_user_error(monkeypatch):
    def fail(name, split):
        raise ConnectionError("cannot\nreach the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"owner/name: neither a file here nor a hub dataset.*cannot reach the hub"):
        load_problems("owner/name")


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        (142.0, ("142",)),
        (0.5, ("0.5",)),
        (-4, ("-4",)),
        (" 9.6\n", ("9.6",)),
        (["a ", "a", " b"], ("a", "b")),
        ([None, 2.0], ("2",)),
        (r"\boxed{\frac{1}{2}}", (r"\frac{1}{2}",)),
        (r"\boxed{1}, \boxed{2}", (r"\boxed{1}, \boxed{2}",)),
    ],
)
def test_ground_truths(value, answers):
    assert parse_answers(value) == answers


@pytest.mark.parametrize("value", [None, "", " \n", [], [None, ""], float("nan"), float("inf"), True, {"a": 1}])
def test_what_is_no_ground_truth(value):
    with pytest.raises(RowError, match="answer"):
        parse_answers(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_answer_keeps_its_value(value):
    (answer,) = parse_answers(value)
    assert float(answer) == value
    assert not answer.endswith(".0")


@given(st.text(), st.sampled_from(["", SUFFIX, "Answer in a box."]), st.integers(0, 3))
def test_suffix_is_there_exactly_once_and_the_id_does_not_see_it(text, suffix, times):
    bare = bare_question(text, suffix)
    if not bare:
        return
    row = {"problem": " ".join([text, *[suffix] * times]), "answer": "1"}
    try:
        problem = P.parse_problem(row, suffix=suffix)
    except RowError:
        assert any(0xD800 <= ord(character) < 0xE000 for character in text)
        return
    assert problem.question == f"{bare} {suffix}".strip()
    assert problem.id == P.problem_id(bare)
    assert P.parse_problem({"problem": problem.question, "answer": "1"}, suffix=suffix) == problem


@pytest.mark.parametrize(
    ("difficulty", "accuracy"),
    [("3/8", 0.375), ("0/8", 0.0), ("8/8", 1.0), ("9/8", None), ("1/0", None), ("hard", None), (5, None), (None, None)],
)
def test_difficulty_becomes_accuracy(difficulty, accuracy):
    assert P.parse_problem({"problem": "q", "answer": "1", "difficulty": difficulty}).accuracy == accuracy
    released = released_row(extra_info={"index": 0, "split": "train", "difficulty": difficulty})
    assert P.parse_problem(released).accuracy == accuracy


def test_bad_rows_are_skipped_counted_and_listed_in_words(tmp_path, caplog):
    path = jsonl(
        tmp_path / "train.jsonl",
        [
            {"problem": "q1", "answer": "1"},
            {"problem": "q2", "answer": " "},
            {"problem": SUFFIX, "answer": "3"},
            "{broken\n",
            "\n",
            "[1, 2]\n",
            {"id": 7, "answer": "5"},
            {"problem": 7, "answer": "5"},
            {"problem": "q8"},
            {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "answer": "1"},
            '{"problem": "half \\ud800", "answer": "1"}\n',
            "[" * 100_000 + "\n",
            {"problem": "q9", "answer": "9"},
        ],
    )
    skipped = []
    with caplog.at_level(logging.WARNING):
        problems = load_problems(path, skipped=skipped)
    assert [problem.answers for problem in problems] == [("1",), ("9",)]
    expected = [
        "train.jsonl line 2: answer is empty",
        "train.jsonl line 3: question is empty",
        "train.jsonl line 4: not JSON (",
        "train.jsonl line 6: found a list, expected an object of columns",
        "train.jsonl line 7: no question; found the columns id, answer, expected one of problem, question, prompt",
        "train.jsonl line 8: problem is a int, expected a text",
        "train.jsonl line 9: no answer; found the columns problem, expected reward_model.ground_truth or one of answer",
        "train.jsonl line 10: prompt holds messages of ['system', 'user'], expected one of the user",
        "train.jsonl line 11: problem holds half a character at position 5",
        "train.jsonl line 12: not JSON (",
    ]
    assert len(skipped) == len(expected)
    for line, start in zip(skipped, expected, strict=True):
        assert line.startswith(start)
    assert "10 rows of" in caplog.text
    assert "answer is empty" in caplog.text


def test_no_usable_row_names_file_columns_and_what_is_expected(tmp_path):
    path = tmp_path / "train.parquet"
    pd.DataFrame({"text": ["a", "b"]}).to_parquet(path)
    message = r"train\.parquet: none of its 2 rows is usable; train\.parquet row 1: no question; found the columns text"
    with pytest.raises(UserError, match=message):
        load_problems(path)


@pytest.mark.parametrize("name", ["no.jsonl", "data/no.parquet", "./owner/name", "nothing", "a/b/c"])
def test_missing_file(name):
    with pytest.raises(UserError, match=f"{name}: no such file or directory"):
        load_problems(name)


def test_unreadable_files(tmp_path):
    for name, content, message in [
        ("a.parquet", b"PAR1 but not really", "not a readable parquet file"),
        ("a.csv", b"problem,answer\n", "unknown kind of file '.csv'"),
        ("a.jsonl", b"", "has no rows"),
        ("a.json", b'[{"problem": "q"', "not JSON"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: {message}"):
            load_problems(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the directory holds no file that ends in"):
        load_problems(tmp_path / "empty")


@pytest.mark.parametrize("layout", ["array", "lines"])
@pytest.mark.parametrize(
    "before",
    [
        codecs.BOM_UTF8,
        b"\n" * 200,
        b" \t\r\n",
        codecs.BOM_UTF8 + b" " * 100 + b"\n",
        codecs.BOM_UTF16_LE,
        codecs.BOM_UTF16_BE,
    ],
)
def test_what_stands_before_json_is_no_matter(tmp_path, layout, before):
    rows = [{"problem": f"Größe {i}", "answer": str(i)} for i in range(3)]
    text = json.dumps(rows, ensure_ascii=False, indent=1) if layout == "array" else "\n".join(map(json.dumps, rows))
    encoding = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}.get(before, "utf-8")
    for name in ("a.json", "a.jsonl")[: 1 if layout == "array" else 2]:
        (tmp_path / name).write_bytes(before + text.encode(encoding))
        assert [problem.question for problem in load_problems(tmp_path / name, suffix="")] == [
            "Größe 0",
            "Größe 1",
            "Größe 2",
        ]


def test_ids_are_the_same_in_every_run():
    assert P.problem_id("What is 1+1?") == P.problem_id(" What is\n 1+1? ") == "31adf3e245f99d7b"


def test_numpy_ground_truths_survive_pandas(tmp_path):
    truths = [np.array(["1", "2"]), np.array(["3"])]
    frame = pd.DataFrame([released_row(f"q{i}", truth) for i, truth in enumerate(truths)])
    frame.to_parquet(tmp_path / "x.parquet")
    assert [p.answers for p in load_problems(tmp_path / "x.parquet")] == [("1", "2"), ("3",)]


USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def test_chats_are_checked(tmp_path):
    path = jsonl(
        tmp_path / "sft.jsonl",
        [
            {"messages": [USER, ASSISTANT | {"reasoning_content": "r", "tool_calls": None}]},
            {"messages": [USER, ASSISTANT | {"reasoning": "r"}]},
            {"messages": [USER, ASSISTANT | {"reasoning_content": None, "thinking": "r"}]},
            {"messages": []},
            {"messages": [USER]},
            {"messages": [USER, {"role": "assistant", "content": ""}]},
            {"messages": [{"role": "robot", "content": "x"}, ASSISTANT]},
            {"messages": [{"role": "user", "content": None}, ASSISTANT]},
            {"text": "q"},
            {"messages": [ASSISTANT]},
        ],
    )
    skipped = []
    assert chat_rows(path, skipped=skipped) == [[USER, ASSISTANT | {"reasoning_content": "r"}]] * 3 + [[ASSISTANT]]
    assert skipped == [
        "sft.jsonl line 4: messages is empty or no list",
        "sft.jsonl line 5: the last message is the user's, expected the assistant's",
        "sft.jsonl line 6: message 2, the assistant's, is empty",
        "sft.jsonl line 7: message 1 has the role 'robot', expected one of system, user, assistant, tool",
        "sft.jsonl line 8: content of message 1 is a NoneType, expected a text",
        "sft.jsonl line 9: no messages; found the columns text, expected `messages`",
    ]
