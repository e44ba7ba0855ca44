"""One instruction, ours: those that datasets bring go, and nothing of the question goes with them."""

import itertools
import json

import pytest

from polaris_jax.data.cleaning import decontaminate
from polaris_jax.data.instructions import without_instructions
from polaris_jax.data.problems import BENCHMARKS, SUFFIX, benchmark, load_problems, parse_problem, problem_id

QUESTION = "Find $x$ with $2^x = 8$."
IN_FRONT = [
    "",
    # DAPO-Math-17k's
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n",
    # lighteval's and Open-R1's
    "Solve the following math problem efficiently and clearly. The last line of your response should be of the "
    "following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without quotes) "
    "where ANSWER is just the final number or expression that solves the problem. Think step by step before "
    "answering.\n\n",
    "Please reason step by step, and put your final answer within \\boxed{}.\n",
    "Answer the following math problem step by step, and put your final answer in \\boxed{}:\n\n",
    "请逐步推理，并将最终答案放在\\boxed{}中。",
]
BEHIND = [
    "",
    '\n\nRemember to put your answer on its own line after "Answer:".',
    f" {SUFFIX}",
    f"\n\n{SUFFIX}\n",
    "\nPlease reason step by step, and put your final answer within \\boxed{}.",
    " Let’s think  step by step\nand output the final answer within \\boxed{}",
    " Return your final response within \\boxed{}. ",
    '\nRemember to put your answer on its own line after "Answer:", and you do not need to use a \\boxed command.',
    " Please put your final answer within $\\boxed{}$.",
    "\n请逐步推理，并把最终答案放置于\\boxed{}之中。",
    " Think step by step. Output your final answer inside \\boxed{answer}.",
    " Make sure to enclose your final answer in \\\\boxed{...}!",
    " Present the answer in LaTex format: \\boxed{Your answer}",
    ' Let\'s think step by step and output the final answer after "####".',
]


@pytest.mark.parametrize(("front", "behind"), itertools.product(IN_FRONT, BEHIND))
def test_the_same_problem_whatever_the_dataset_tells_to_do(front, behind):
    problem = parse_problem({"prompt": front + QUESTION + behind, "answer": "3"})
    assert problem.question == f"{QUESTION} {SUFFIX}"
    assert problem.id == problem_id(QUESTION)


def test_a_question_without_a_full_stop_keeps_its_last_word():
    assert without_instructions(f"What is $1+1${SUFFIX}") == "What is $1+1$"
    assert without_instructions(f"Name the answer {SUFFIX}") == "Name the answer"


@pytest.mark.parametrize(
    "question",
    [
        "How many ways can he climb the stairs step by step?",
        "If $x + 1 = 2$ then what is $x$? Solve.",
        "Find the answer.",
        "Simplify. Give your answer in \\boxed{a+b} form where $a$ is 3.",
        "Express your answer in the form $a+b\\sqrt{c}$.",
        "Put the number in the box.",
        "Fill in the \\boxed{} with a digit.",
        "Let's think of a number. Put 3 within \\boxed{}.",
    ],
)
def test_what_is_part_of_the_question_stays(question):
    assert without_instructions(question) == question


def test_the_benchmarks_questions_hold_no_instruction():
    for problem in itertools.chain.from_iterable(benchmark(name, suffix="") for name in BENCHMARKS):
        assert without_instructions(problem.question) == problem.question


def test_repeats_and_overlaps_are_found_behind_other_instructions(tmp_path):
    asked = benchmark("aime24")[0]
    question = benchmark("aime24", suffix="")[0].question
    rows = [
        {"problem": front + question + behind, "answer": "204"} for front, behind in zip(IN_FRONT, BEHIND, strict=False)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    skipped = []
    (problem,) = load_problems(path, skipped=skipped)
    assert problem.id == asked.id
    assert len(skipped) == len(rows) - 1
    assert decontaminate([problem], [asked])[0] == []


def test_an_instruction_alone_is_no_question():
    assert without_instructions("".join(IN_FRONT)) == ""


def test_long_texts_of_instructions_take_no_long_time():
    assert without_instructions(f"{QUESTION} " + "Reason step by step. " * 2000) == QUESTION
    text = "the answer is a number " * 2000
    assert without_instructions(text) == text.strip()
