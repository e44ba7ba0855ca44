import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_jax.rl.temperature import COLLAPSE, distinct_ngrams, diversity, find_zones, search_temperature


def test_distinct_ngrams_by_hand():
    # Two 4-grams in each text; "b c d e" is in both: three of four are distinct.
    assert distinct_ngrams(["a b c d e", "x b\nc   d e"]) == 0.75
    assert distinct_ngrams(["a b c d", "a b c d", "a b c d"]) == pytest.approx(1 / 3)
    assert distinct_ngrams(["a a a a a a"]) == pytest.approx(1 / 3)  # the same one three times
    assert distinct_ngrams(["a b a b"], n=2) == pytest.approx(2 / 3)
    assert distinct_ngrams(["a b c", ""]) == 0.0
    assert distinct_ngrams(["a b c d", "e f g"]) == 1.0  # no 4-gram runs from one text into the next


def test_diversity_is_the_mean_over_groups_not_over_all_texts():
    same = ["a b c d", "a b c d"]
    assert diversity([same, ["a b c d e", "f g h i"]]) == pytest.approx((0.5 + 1.0) / 2)
    assert diversity([same, same]) == 0.5  # what another group says does not count
    with pytest.raises(ValueError, match="no groups"):
        diversity([])


@given(st.lists(st.text("ab ", max_size=12), max_size=4), st.integers(1, 4))
def test_distinct_ngrams_is_a_share_whatever_the_order(texts, n):
    found = distinct_ngrams(texts, n)
    assert 0 <= found <= 1
    assert found == distinct_ngrams(texts[::-1], n)
    assert distinct_ngrams(texts * 2, n) == found / 2


# Shaped as reported for Qwen3-4B: flat up to 1.4, falling up to 1.55 while diversity rises, nothing above.
TEMPERATURES = (0.6, 0.8, 1.0, 1.2, 1.4, 1.45, 1.5, 1.55, 1.6, 1.7)
ACCURACIES = (0.655, 0.65, 0.66, 0.655, 0.65, 0.60, 0.55, 0.45, 0.2, 0.02)
DIVERSITIES = (0.28, 0.31, 0.35, 0.40, 0.47, 0.52, 0.58, 0.66, 0.85, 0.99)


def test_the_zones_of_qwen3_4b():
    zones = find_zones(TEMPERATURES, ACCURACIES, DIVERSITIES)
    assert zones.robust == (0.6, 1.4)
    assert zones.exploration == (1.4, 1.55)
    assert zones.collapse == (1.55, 1.7)


def test_zones_where_something_is_missing():
    flat = find_zones((0.6, 1.0), (0.5, 0.5), (0.2, 0.3))
    assert flat == ((0.6, 1.0), (1.0, 1.0), (1.0, 1.0))
    # Accuracy that falls without more diversity is no exploration.
    assert find_zones((0.6, 1.0, 1.2), (0.5, 0.5, 0.4), (0.2, 0.3, 0.3)) == ((0.6, 1.0), (1.0, 1.0), (1.0, 1.2))
    assert find_zones((0.6,), (0.0,), (0.1,)) == ((0.6, 0.6),) * 3
    with pytest.raises(ValueError, match="ascend"):
        find_zones((1.0, 0.6), (0.5, 0.5), (0.2, 0.3))
    with pytest.raises(ValueError, match="as many"):
        find_zones((0.6, 1.0), (0.5,), (0.2, 0.3))


def slow_search(measure, target, start, step, highest):
    """One step after the other."""
    first, _ = measure(start)
    found = temperature = start
    while temperature <= highest + 1e-6:
        accuracy, diverse = measure(temperature)
        if accuracy < COLLAPSE * first:
            return found
        found = temperature
        if diverse >= target:
            return found
        temperature = round(temperature + step, 6)
    return found


@given(
    st.lists(st.floats(0, 0.1), min_size=30, max_size=30),
    st.integers(0, 31),
    st.floats(0.01, 2.0),
    st.integers(0, 29),
)
def test_the_search_finds_what_a_slow_search_finds(rises, collapse, target, room):
    diversities = np.cumsum(rises)
    calls = []

    def measure(temperature):
        place = round((temperature - 1.0) / 0.05)
        calls.append(place)
        return (0.1 if place >= max(collapse, 1) else 0.8), diversities[place]

    highest = round(1.0 + 0.05 * room, 6)
    found = search_temperature(measure, target, 1.0, highest=highest)
    assert len(set(calls)) == len(calls) <= 11  # of 30: no temperature is measured twice
    assert max(calls) <= room
    assert found == slow_search(measure, target, 1.0, 0.05, highest)


def test_small_falls_are_climbed_by_small_steps_and_large_ones_by_larger():
    asked = []

    def measure(temperature):
        asked.append(temperature)
        return 0.7, temperature / 2

    assert search_temperature(measure, 0.725, 1.4, highest=2.0) == 1.45
    assert asked == [1.4, 1.45]
    asked.clear()
    assert search_temperature(measure, 0.875, 1.4, highest=2.0) == 1.75
    assert asked == [1.4, 1.45, 1.55, 1.75, 1.65, 1.7]
    assert search_temperature(measure, 0.1, 1.4, highest=2.0) == 1.4  # diverse enough as it is: never cooler
    assert search_temperature(measure, 5.0, 1.4, highest=2.0) == 2.0
