"""Rewards beside the verdict: what they give, and that a bad one harms nothing but its own score."""

import numpy as np
import pytest

from polaris_jax.errors import UserError
from polaris_jax.rewards import VerifierPool
from polaris_jax.rewards.functions import FUNCTIONS, response_functions, weights
from polaris_jax.rewards.of_groups import GROUP_FUNCTIONS
from polaris_jax.rewards.of_responses import format_reward, language_consistency, repetition
from polaris_jax.rewards.total import reward_parts, weighted_sum
from polaris_jax.rewards.verdict import Reason, Score, Verdict
from polaris_jax.types import Problem

PROBLEM = Problem("a", "What is 1 + 0? Think for 100 tokens.", ("1",))
RIGHT = "<think>\nOne.\n</think>\n\\boxed{1}"

MINE = """
import sys
from beside import HALF

def length(response, problem):
    return len(response) + HALF

def gold(response, problem):
    return float(problem.answers == ("1",) and problem.kind == "math")

def raises(response, problem):
    raise KeyError("no such thing")

def nothing(response, problem):
    pass

def infinite(response, problem):
    return float("inf")

def leaves(response, problem):
    sys.exit(1)

def dies(response, problem):
    import os; os._exit(1)

def hangs(response, problem):
    while True:
        try:
            while True: pass
        except BaseException: pass

def eats(response, problem):
    return len(bytearray(1 << 33))
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("mine") / "my_rewards.py"
    path.write_text(MINE)
    path.with_name("beside.py").write_text("HALF = 0.5")
    return path


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(1, timeout_s=0.5, memory_bytes=512 << 20) as made:
        yield made


def functions(mine, *names):
    return response_functions([(f"{mine}:{name}", 1.0) for name in names])


def test_a_users_functions_get_the_response_and_the_problem(pool, mine):
    found = functions(mine, "length", "gold")
    assert pool.check(found) == ""
    verdict = pool.submit(RIGHT, PROBLEM, found).result()
    assert verdict == Verdict(True, Reason.EQUAL, scores=(Score(len(RIGHT) + 0.5), Score(1.0)))
    wrong = pool.submit("no box", PROBLEM, found).result()  # scored although the verdict needs no worker
    assert wrong == Verdict(False, Reason.NO_THINK_END, scores=(Score(6.5), Score(1.0)))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("raises", "KeyError: 'no such thing'"),
        ("nothing", "returned None"),
        ("infinite", "returned inf"),
        ("leaves", "SystemExit: 1"),
        ("dies", "worker_died"),
        ("hangs", "timed_out"),
        ("eats", "over_memory"),
    ],
)
def test_a_function_that_fails_scores_0_and_the_others_and_the_verdict_stand(pool, mine, name, error):
    verdict = pool.submit(RIGHT, PROBLEM, functions(mine, "gold", name, "length")).result()
    assert verdict.correct
    before, failed, behind = verdict.scores
    assert (before, behind) == (Score(1.0), Score(len(RIGHT) + 0.5))
    assert failed.value == 0
    assert error in failed.error


def test_what_cannot_be_imported_is_told_before_the_run(pool, mine, tmp_path):
    assert "no_such" in pool.check(functions(mine, "length", "no_such"))
    assert "expected a function" in pool.check(functions(mine, "HALF"))
    bad = tmp_path / "bad.py"
    bad.write_text("import no_such_module")
    assert "No module named 'no_such_module'" in pool.check(functions(bad, "f"))


def test_workers_run_the_text_that_the_run_began_with(pool, tmp_path):
    path = tmp_path / "changing.py"
    path.write_text("def f(response, problem): return 1")
    before = functions(path, "f")
    path.write_text("def f(response, problem): return 2")
    after = functions(path, "f")
    assert [pool.submit(RIGHT, PROBLEM, found).result().scores[0].value for found in (before, after, before)] == [
        1,
        2,
        1,
    ]
    assert before[0].sha256 != after[0].sha256


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ([("verfy", 1.0)], "no function 'verfy'"),
        ([("nowhere.py:f", 1.0)], "nowhere.py: cannot be read"),
        ([("a.py:f", 1.0), ("b.py:f", 1.0)], "f is there twice"),
        ([("a.py:verify", 1.0)], "verify is another reward's name"),
    ],
)
def test_names_that_mean_nothing_are_refused(named, message):
    with pytest.raises(UserError, match=message):
        response_functions(named)


def test_every_shipped_function_gives_a_number_for_any_text():
    for function in FUNCTIONS.values():
        for response in ("", RIGHT, "</think>" * 3, "思考 and think " * 50):
            assert isinstance(function(response, PROBLEM), float)


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (RIGHT, 1),
        ("One.</think>\\boxed{1}", 1),  # the chat template opened the thoughts
        ("<think>One. \\boxed{1}", 0),
        ("<think>One.</think>1", 0),
        ("<think>One.</think>\\boxed{1", 0),
        ("<think>a<think>b</think>\\boxed{1}", 0),
        ("<think>a</think>b</think>\\boxed{1}", 0),
    ],
)
def test_format(response, value):
    assert format_reward(response, PROBLEM) == value


def test_repetition_is_the_share_of_runs_that_were_there_before():
    distinct = " ".join(map(str, range(200)))
    assert repetition(distinct, PROBLEM) == 0
    assert repetition("short", PROBLEM) == 0
    loop = "again and again " * 100  # 300 words, 261 runs, of which 3 differ
    assert repetition(loop, PROBLEM) == pytest.approx(3 / 261 - 1)


def test_language_consistency_is_the_share_of_words_in_the_questions_script():
    assert language_consistency("We add three words", PROBLEM) == 1
    assert language_consistency("We add 三个</think>其余", PROBLEM) == 0.5
    assert language_consistency("我们用 $x+y$ 和 \\frac 计算", Problem("a", "求和。", ("1",))) == 1
    assert language_consistency("12 + 5", PROBLEM) == 1


def verdicts(correct, *scores):
    return [Verdict(c, Reason.EQUAL if c else Reason.UNEQUAL, scores=s) for c, *s in zip(correct, *scores, strict=True)]


def test_length_rewards_are_those_of_their_papers():
    lengths, correct = np.array([50, 100, 150, 150]), np.array([True, True, True, False])
    kimi = GROUP_FUNCTIONS["kimi_length"](lengths, correct, PROBLEM)
    assert kimi.tolist() == [0.5, 0.0, -0.5, -0.5]
    assert GROUP_FUNCTIONS["kimi_length"](lengths, ~correct, PROBLEM).tolist() == [0.0, 0.0, -0.5, -0.5]
    assert GROUP_FUNCTIONS["kimi_length"](np.array([7, 7]), np.array([True, False]), PROBLEM).tolist() == [0, 0]
    exact = GROUP_FUNCTIONS["l1_exact"](lengths, correct, PROBLEM)
    assert exact == pytest.approx([-0.015, 0, -0.015, -0.015])
    most = GROUP_FUNCTIONS["l1_max"](np.array([50, 100, 5000, 50]), correct, PROBLEM)
    assert most == pytest.approx([0.515, 0.5, 0, 0])


def test_the_reward_is_the_weighted_sum_and_what_failed_is_counted():
    named = {"verify": 1.0, "mine": 0.5, "kimi_length": 2.0}
    found = response_functions([("format", 0.5)])
    mine = [found[0]._replace(name="mine")]
    scored = [
        Verdict(True, Reason.EQUAL, scores=(Score(4.0),)),
        Verdict(False, Reason.UNEQUAL, 0.25, (Score(0.0, "no"),)),
    ]
    parts = reward_parts(PROBLEM, scored, np.array([10, 20]), named, mine)
    assert list(parts) == list(named)
    assert parts["verify"].values.tolist() == [1, 0.25]  # a scorer's partial reward counts, and is not right
    assert parts["mine"].errors == ("no",)
    assert weighted_sum(parts, named).tolist() == [1 + 2 + 1, 0.25 + 0 - 1]
    assert weighted_sum(parts, named).dtype == np.float32


def test_a_group_function_that_a_problem_does_not_suit_fails_on_all():
    parts = reward_parts(
        Problem("a", "?", ("1",)), [Verdict(True, Reason.EQUAL)] * 3, np.arange(3), {"l1_max": 1.0}, []
    )
    assert len(parts["l1_max"].errors) == 3
    assert weighted_sum(parts, {"l1_max": 1.0}).tolist() == [0, 0, 0]


def test_names_in_metrics_are_short():
    assert weights([("verify", 1), ("dir/my_rewards.py:format_reward", 0.2)]) == {"verify": 1.0, "format_reward": 0.2}
