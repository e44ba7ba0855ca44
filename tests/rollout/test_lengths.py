"""What running sequences will need, against slow and obvious versions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_jax.rollout.kv_pages import pages_for
from polaris_jax.rollout.lengths import Lengths, most_pages

lengths = st.lists(st.integers(1, 12), max_size=8)


def goes_on(ended, unfinished, length):
    """The share of responses that have more than `length` tokens: those that survive each length on the way."""
    share = 1.0
    for n in range(1, length + 1):
        alive = sum(other >= n for other in ended + unfinished)
        share *= 1 - ended.count(n) / alive if alive else 1
    return share


@given(lengths, lengths, st.integers(0, 12), st.integers(1, 12))
def test_what_is_left_is_the_sum_of_the_shares_that_go_on(ended, unfinished, produced, more):
    unfinished = [*unfinished, produced]
    shares = [goes_on(ended, unfinished, length) for length in range(produced, produced + more)]
    expected = sum(shares) / shares[0]
    assert Lengths(ended, unfinished).left(produced, produced + more) == pytest.approx(expected)


def test_nothing_is_expected_to_end_before_its_limit_until_one_has():
    assert Lengths([], [3, 5]).left(5, 40) == 35


def test_early_ends_of_short_ones_do_not_mislead():
    """Of 8 that began together one has ended: the other 7 are not expected to be as short."""
    assert Lengths([10], [10] * 7).left(0, 100) == pytest.approx(10 + 90 * 7 / 8)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=6), st.integers(1, 5))
def test_most_pages_is_the_peak_of_a_simulation(sequences, page_size):
    most = most_pages(sorted((-left, own) for left, own in sequences), page_size)
    steps = [[own + n for left, own in sequences if left >= n] for n in range(1, 21)]
    tokens = max(sum(step) for step in steps)
    assert tokens / page_size <= most
    assert max(sum(pages_for(own, page_size) for own in step) for step in steps) <= most
    assert most <= max(sum(step) / page_size + len(step) for step in steps)
