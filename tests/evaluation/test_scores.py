"""Scores equal values worked out by hand, and keep their laws."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polaris_jax.evaluation.scores import NO_ANSWER, average, estimate, majority, pass_at_k

CORRECT = np.array([[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
any_correct = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7))


def test_average_by_hand():
    np.testing.assert_allclose(average(CORRECT), [0.5, 0.25, 0, 1])


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [2 / 4, 1 / 4, 0, 1]),
        (2, [1 - 1 / 6, 1 - 3 / 6, 0, 1]),  # of the 6 pairs, 1 and 3 hold no right sample
        (3, [1, 1 - 1 / 4, 0, 1]),
        (4, [1, 1, 0, 1]),
    ],
)
def test_pass_at_k_by_hand(k, expected):
    np.testing.assert_allclose(pass_at_k(CORRECT, k), expected)


@given(any_correct, st.data())
def test_pass_at_k_is_the_mean_over_all_draws_of_k(correct, data):
    k = data.draw(st.integers(1, correct.shape[1]))
    draws = [correct[:, list(draw)].any(axis=1) for draw in itertools.combinations(range(correct.shape[1]), k)]
    np.testing.assert_allclose(pass_at_k(correct, k), np.mean(draws, axis=0), atol=1e-12)


@given(any_correct)
def test_pass_at_k_grows_from_the_average_to_any(correct):
    curve = [pass_at_k(correct, k) for k in range(1, correct.shape[1] + 1)]
    np.testing.assert_allclose(curve[0], average(correct), atol=1e-12)
    np.testing.assert_allclose(curve[-1], correct.any(axis=1))
    assert np.all(np.diff(curve, axis=0) >= -1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow():
    correct = np.zeros((1, 5000), bool)
    correct[0, 0] = True
    np.testing.assert_allclose(pass_at_k(correct, 2500), [0.5])


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match=f"pass@{k} of 4 samples"):
        pass_at_k(CORRECT, k)


def test_majority_by_hand():
    no = NO_ANSWER
    groups = [[7, 7, 3, no], [7, 3, 3, no], [1, 1, 2, 2], [no, no, no, no], [no, no, no, 5], [1, 2, 3, 4]]
    correct = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    np.testing.assert_allclose(majority(groups, correct), [1, 0, 0.5, 0, 1, 0.25])


@given(any_correct, st.data())
def test_majority_does_not_depend_on_the_groups_numbers_or_the_order_of_samples(correct, data):
    # Right samples gave the answer 0, wrong ones any other.
    wrong = data.draw(hnp.arrays(int, correct.shape, elements=st.integers(1, 3)))
    groups = np.where(correct, 0, wrong)
    expected = majority(groups, correct)
    np.testing.assert_allclose(majority(10 - 2 * groups, correct), expected)
    order = data.draw(st.permutations(range(correct.shape[1])))
    np.testing.assert_allclose(majority(groups[:, order], correct[:, order]), expected)


def test_estimate_by_hand():
    # Mean 0.5, unbiased standard deviation of (0, 0.5, 0.5, 1) sqrt(1/6), standard error sqrt(1/24).
    mean, low, high = estimate([0, 0.5, 0.5, 1])
    assert mean == 0.5
    assert low == pytest.approx(0.5 - 1.96 / 24**0.5)
    assert high == pytest.approx(0.5 + 1.96 / 24**0.5)


def test_estimate_stays_in_its_bounds_and_knows_what_it_cannot_know():
    assert estimate([0, 1]) == (0.5, 0, 1)
    assert estimate([0, 10], bounds=(0, np.inf))[1:] == (0, pytest.approx(5 + 1.96 * 5))
    assert np.isnan(estimate([1.0])[1:]).all()
    with pytest.raises(ValueError, match="no problems"):
        estimate([])
