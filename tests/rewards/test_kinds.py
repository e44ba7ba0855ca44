"""Answers that are no mathematics: choices, exact texts, and what reasoning-gym's scorers judge."""

import pytest

from polaris_jax.rewards import Reason, VerifierPool
from polaris_jax.rewards.gym import UnknownDataset, make_metadata, score, scorer
from polaris_jax.types import Problem


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(1, timeout_s=5.0) as made:
        yield made


def reason(pool, kind, gold, final, metadata=""):
    return pool.submit(f"</think>{final}", Problem("a", "?", (gold,), kind=kind, metadata=metadata)).result().reason


@pytest.mark.parametrize("final", [
    r"\boxed{B}", r"\boxed{(B)}", r"\boxed{b}", r"\boxed{B.}", r"\boxed{\text{B}}", r"\boxed{\textbf{(B)}}",
    r"\boxed{B) 12 m}", r"\boxed{ B }", "The answer is (B).", "Answer: B", "**Answer:** B", "A? No. Answer: **B**",
])  # fmt: skip
def test_a_choice_is_read_as_people_write_it(pool, final):
    assert reason(pool, "choice", "B", final) is Reason.EQUAL
    assert reason(pool, "choice", "C", final) is Reason.UNEQUAL


@pytest.mark.parametrize(
    ("final", "expected"),
    [
        (r"\boxed{A, C}", Reason.EQUAL),
        (r"\boxed{C and A}", Reason.EQUAL),
        (r"\boxed{AC}", Reason.EQUAL),
        (r"\boxed{(A)(C)}", Reason.EQUAL),
        (r"\boxed{A}", Reason.UNEQUAL),
        (r"\boxed{ABC}", Reason.UNEQUAL),
        (r"\boxed{A dog}", Reason.UNPARSABLE),
        (r"\boxed{12}", Reason.UNPARSABLE),
        ("The answer is a number", Reason.NO_BOX),
    ],
)
def test_several_letters_are_a_set(pool, final, expected):
    assert reason(pool, "choice", "AC", final) is expected


def test_exact_texts_are_equal_up_to_white_space(pool):
    assert reason(pool, "exact", "racecar  level", r"\boxed{\text{racecar level}}") is Reason.EQUAL
    assert reason(pool, "exact", "caf\u00e9", "\\boxed{cafe\u0301}") is Reason.EQUAL
    assert reason(pool, "exact", "Level", r"\boxed{level}") is Reason.UNEQUAL
    assert reason(pool, "exact", "1/2", r"\boxed{0.5}") is Reason.UNEQUAL
    assert reason(pool, "exact", "x", "x") is Reason.NO_BOX


def test_hostile_choices_take_no_time(pool):
    for text in ("A" + " " * 19_000 + "x", "A,B" * 6_000 + "!", "answer" + " " * 100_000 + "9"):
        assert reason(pool, "choice", "B", rf"\boxed{{{text}}}") in (Reason.UNPARSABLE, Reason.UNEQUAL)
        reason(pool, "choice", "B", text)


def test_reasoning_gyms_scorer_judges_in_a_worker(pool):
    gym = pytest.importorskip("reasoning_gym")
    for name in ("chain_sum", "letter_counting", "spell_backward"):
        entry = gym.create_dataset(name, size=1, seed=3)[0]
        metadata, answer = make_metadata(name, entry), entry["answer"]
        assert reason(pool, "reasoning_gym", answer, rf"\boxed{{{answer}}}", metadata) is Reason.EQUAL
        assert reason(pool, "reasoning_gym", answer, r"\boxed{nonsense}", metadata) is Reason.UNEQUAL
        assert reason(pool, "reasoning_gym", answer, answer, metadata) is Reason.NO_BOX
    long = Problem("a", "?", ("9",), kind="reasoning_gym", metadata=make_metadata("letter_counting", {"answer": "9"}))
    partial = pool.submit(r"</think>\boxed{9 apples}", long).result()
    assert not partial.correct
    assert 0 < partial.partial < 1
    assert partial.reward == partial.partial


def test_scorers_that_evaluate_what_a_model_wrote_are_refused():
    pytest.importorskip("reasoning_gym")
    for name in ("countdown", "puzzle24", "n_queens", "polynomial_multiplication", "simple_integration"):
        with pytest.raises(UnknownDataset, match="what the model wrote"):
            scorer(name)
    with pytest.raises(UnknownDataset, match="no such dataset"):
        scorer("no_such")
    assert score("7", make_metadata("chain_sum", {"answer": "7", "question": "?", "metadata": {}})) == 1
