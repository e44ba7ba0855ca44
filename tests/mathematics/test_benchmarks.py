"""Every ground truth of the benchmarks is right when boxed, and wrong when changed."""

import re
from importlib.resources import files

import pandas as pd
import pytest

from polaris_jax.mathematics import Comparison, judge
from polaris_jax.rewards.answers import alternatives

BENCHMARKS = ("aime24", "aime25", "amc23", "minerva", "olympiad")
# Ground truths that do not verify against themselves, with the reason; none is known.
KNOWN_FAILURES: dict[str, str] = {}


def truths(benchmark):
    """Alternatives of each problem."""
    path = files("polaris_jax.data") / "benchmarks" / f"{benchmark}.parquet"
    return [alternatives(row["ground_truth"]) for row in pd.read_parquet(path)["reward_model"]]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_each_ground_truth_equals_itself(benchmark):
    failing = {
        truth for golds in truths(benchmark) for truth in golds if judge(truth.strip(), golds) is not Comparison.EQUAL
    }
    assert failing == set(KNOWN_FAILURES) & failing


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_changed_number_makes_it_wrong(benchmark):
    def changed(truth):
        number = re.search(r"\d+", truth)
        return number and truth[: number.start()] + str(int(number.group()) + 3) + truth[number.end() :]

    wrong = [
        (other, golds)
        for golds in truths(benchmark)
        if len(golds) == 1 and (other := changed(golds[0])) and judge(other, golds) is Comparison.EQUAL
    ]
    assert not wrong
