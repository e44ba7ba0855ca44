"""The sampling temperature: how diverse responses are, the zones of a probe over temperatures, the search for one.

POLARIS, June 2025: train at the start of the controlled exploration zone, and after each stage at the temperature that
restores the diversity measured at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

FLAT = 0.05  # accuracy within this share of the best is flat
COLLAPSE = 0.5  # below this share of the best (in a search: of that at the start) it has collapsed


class Zones(NamedTuple):
    """Temperatures (first, last) of each zone; neighbours share their border. An empty zone has first == last.

    robust: accuracy is flat. exploration: it falls while diversity rises; training belongs at its first temperature.
    collapse: what is hotter.
    """

    robust: tuple[float, float]
    exploration: tuple[float, float]
    collapse: tuple[float, float]


def distinct_ngrams(texts: Sequence[str], n: int = 4) -> float:
    """Distinct n-grams over all n-grams of the texts together, words split on white space.

    In (0, 1]; 0 where no text has n words.
    """
    words = [text.split() for text in texts]
    ngrams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def diversity(texts_per_group: Sequence[Sequence[str]], n: int = 4) -> float:
    """The mean over groups of `distinct_ngrams` of the group's responses. Raises ValueError without groups."""
    if not texts_per_group:
        raise ValueError("no groups to take the mean over")
    return float(np.mean([distinct_ngrams(texts, n) for texts in texts_per_group]))


def find_zones(temperatures: Sequence[float], accuracies: Sequence[float], diversities: Sequence[float]) -> Zones:
    """The zones of a probe: one accuracy and one diversity for each of the ascending temperatures.

    Robust generation ends at the last temperature whose accuracy is within FLAT of the best. Controlled exploration
    goes on from there while diversity is above that at its start and accuracy at least COLLAPSE of the best. Raises
    ValueError where lengths differ, temperatures do not ascend, or there are none.
    """
    if not len(temperatures) == len(accuracies) == len(diversities) > 0:
        raise ValueError("expected as many accuracies and diversities as temperatures, at least one")
    if list(temperatures) != sorted(set(temperatures)):
        raise ValueError(f"temperatures must ascend: {list(temperatures)}")
    best = max(accuracies)
    start = max(i for i, accuracy in enumerate(accuracies) if accuracy >= (1 - FLAT) * best)
    end = start
    for i in range(start + 1, len(temperatures)):
        if accuracies[i] < COLLAPSE * best or diversities[i] <= diversities[start]:
            break
        end = i
    borders = [float(temperatures[i]) for i in (0, start, end, -1)]
    return Zones(*pairwise(borders))


def search_temperature(
    measure: Callable[[float], tuple[float, float]],
    target: float,
    start: float,
    *,
    step: float = 0.05,
    highest: float,
) -> float:
    """The lowest temperature start, start + step, ... up to `highest` whose diversity is at least `target`.

    measure: a temperature's (accuracy, diversity). Both are taken as monotone in the temperature. The stride doubles
    for as long as diversity stays short, so that where it fell little the search climbs by `step` and where it fell
    much by more; then the last stride is halved down to `step`. A temperature whose accuracy is below COLLAPSE of that
    at `start` is never chosen: the one before it is. Where no temperature up to `highest` is diverse enough, that one.
    """
    lowest_accuracy, found = measure(start)
    lowest_accuracy *= COLLAPSE
    if found >= target:
        return start
    temperatures = start + step * np.arange(int((highest - start) / step + 1e-6) + 1)
    temperatures = [round(float(temperature), 6) for temperature in temperatures]
    collapsed = False
    short, enough, stride = 0, len(temperatures), 1  # places on the grid: too cold, hot enough or too hot
    while enough - short > 1:
        place = min(short + stride, enough - 1)
        accuracy, found = measure(temperatures[place])
        if accuracy < lowest_accuracy or found >= target:
            collapsed, enough, stride = accuracy < lowest_accuracy, place, max(1, (place - short) // 2)
        else:
            short, stride = place, stride * 2 if enough == len(temperatures) else max(1, (enough - place) // 2)
    return temperatures[short if collapsed or enough == len(temperatures) else enough]
