import hashlib
import json
import re
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_jax.data import arithmetic
from polaris_jax.rewards.answers import last_box

SUFFIX = r"Let's think step by step and output the final answer within \boxed{}."


TASKS = pytest.mark.parametrize("task", arithmetic.TASKS.values(), ids=arithmetic.TASKS)


@pytest.fixture(scope="module")
def tokenizer():
    return arithmetic.build_tokenizer(SUFFIX)


@TASKS
@given(seed=st.integers(0, 2**32 - 1))
def test_chain_totals_follow_from_its_words(task, seed):
    chain = arithmetic.sample_chain(Random(seed), task.operations)
    start, *operations = re.findall(r"[+\-*]?\d+", chain.question)
    total = int(start)
    for operation in operations:
        total = {"+": total.__add__, "-": total.__sub__, "*": total.__mul__}[operation[0]](int(operation[1:]))
        assert arithmetic.LOWEST <= total <= arithmetic.HIGHEST
    assert total == chain.totals[-1]
    assert task.operations[0] <= len(operations) <= task.operations[1]


def test_traces_are_written_as_documented():
    chain = arithmetic.Chain(("+5", "*2", "-7"), (22, 27, 54, 47))
    assert chain.question == "Start with 22, first +5, second *2, third -7. What is the result?"
    assert chain.trace((1, 1, 1)) == (
        "<think> 22. first +5 on 22 is 27. second *2 on 27 is 54. third -7 on 54 is 47.</think>\n"
        "The answer is \\boxed{47}"
    )
    assert "first +5 second *2 on 22 is 54. third -7 on 54 is 47." in chain.trace((2, 1))


@TASKS
def test_splits_do_not_overlap_whatever_the_seed(task):
    train = {p.id for seed in range(3) for p in arithmetic.problems("train", 500, SUFFIX, seed, task)}
    test = {p.id for seed in range(3) for p in arithmetic.problems("test", 500, SUFFIX, seed, task)}
    assert len(test) > 500
    assert not train & test


@TASKS
def test_sft_never_sees_a_held_out_question(task):
    test = {p.question for p in arithmetic.problems("test", 500, SUFFIX, 0, task)}
    rows = arithmetic.conversations(2000, SUFFIX, 0, task)
    assert not test & {message["content"] for row in rows for message in row}


def is_hasty(row):
    trace = row[-1]["content"]
    return len(re.findall(r" on ", trace)) < len(re.findall(r"[+\-*]\d", trace))


@pytest.mark.parametrize("careful", [0.0, 0.25, 1.0])
def test_hasty_traces_come_in_little_by_little(careful):
    task = replace(arithmetic.DEMO, careful=(careful,) * 6)
    rows = arithmetic.conversations(4000, SUFFIX, 0, task, mixing=(0.25, 0.75))
    none, few, more, most = ([*map(is_hasty, rows[i : i + 1000])].count(True) / 1000 for i in range(0, 4000, 1000))
    share = 1 - careful
    assert none == 0
    assert [few, more, most] == pytest.approx([share / 4, share * 3 / 4, share], abs=0.06)


@TASKS
def test_the_style_of_a_trace_depends_on_its_length_as_the_task_says(task):
    rows = arithmetic.conversations(6000, SUFFIX, 0, task, practice=0.0, mixing=(0.0, 1e-9))
    careful = {}
    for question, answer in rows:
        operations = question["content"].count(",")
        careful.setdefault(operations, []).append(not is_hasty([answer]))
    assert sorted(careful) == list(range(task.operations[0], task.operations[1] + 1))
    found = [sum(careful[operations]) / len(careful[operations]) for operations in sorted(careful)]
    assert found == pytest.approx(task.careful, abs=0.06)


def test_the_demos_data_are_those_that_its_figures_are_of(tokenizer):
    """Another draw of the random numbers, or another order of the vocabulary, is another demo (docs/demo.md)."""
    data = [
        sorted(tokenizer.get_vocab().items()),
        arithmetic.conversations(2000, SUFFIX),
        [(p.question, p.answers) for split in ("train", "test") for p in arithmetic.problems(split, 200, SUFFIX)],
    ]
    assert hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16] == "bf5c7cdb67fc705f"


@TASKS
def test_every_trace_boxes_its_answer(task):
    for problem, row in zip(
        arithmetic.problems("train", 200, SUFFIX, 0, task),
        arithmetic.conversations(200, SUFFIX, 0, task, practice=0.0),
        strict=True,
    ):
        assert row[0]["content"] == problem.question
        assert problem.answers == (last_box(row[1]["content"].split("</think>")[1]),)


@given(st.integers(1, 7), st.integers(0, 1000))
def test_hasty_lines_cover_all_operations(operations, seed):
    lines = arithmetic.hasty_lines(Random(seed), operations)
    assert sum(lines) == operations
    assert set(lines[:-1]) <= {2, 3, 4}
    assert 1 <= lines[-1] <= 4


@given(st.integers(0, 1000))
def test_lines_of_a_true_trace_are_all_right(seed):
    rng = Random(seed)
    chain = arithmetic.sample_chain(rng)
    lengths = arithmetic.hasty_lines(rng, len(chain.operations))
    assert arithmetic.lines(chain.trace(lengths)) == [(length, True) for length in lengths]


def test_lines_tell_where_a_trace_went_wrong():
    trace = "<think> 22. first +5 on 22 is 27. second *2 third -7 on 27 is 46. fourth +1 on 46 is 47.</think>"
    assert arithmetic.lines(trace) == [(1, True), (2, False), (1, True)]
    assert arithmetic.lines("no trace at all") == []


@TASKS
def test_tokenizer_decodes_to_the_exact_text(task):
    tokenizer = arithmetic.build_tokenizer(SUFFIX, task)
    for row in arithmetic.conversations(200, SUFFIX, 0, task):
        text = tokenizer.apply_chat_template(row, tokenize=False)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_a_number_is_the_same_token_everywhere(tokenizer):
    number = tokenizer.convert_tokens_to_ids("77")
    for text in ("Start with 77, first +5", "on 77 is 82.", r"\boxed{77}", "<think> 77."):
        assert tokenizer(text)["input_ids"].count(number) == 1


def test_conversations_are_written_as_jsonl(tmp_path):
    rows = arithmetic.conversations(5, SUFFIX)
    arithmetic.write_conversations(tmp_path / "a" / "sft.jsonl", rows)
    lines = (tmp_path / "a" / "sft.jsonl").read_text().splitlines()
    assert [json.loads(line)["messages"] for line in lines] == rows
