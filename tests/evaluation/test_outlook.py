"""What an evaluation says of its end: times from measured speeds, and the scores of what is complete."""

import re

import numpy as np
import pytest
from rich.console import Console

from polaris_jax.evaluation import job
from polaris_jax.evaluation import outlook as module
from polaris_jax.evaluation.evaluate import summarize
from polaris_jax.evaluation.outlook import Outlook, forecast, seconds_left
from polaris_jax.evaluation.records import Record
from polaris_jax.rewards import VerifierPool
from polaris_jax.types import Problem

PROBLEMS = [Problem(str(i), "?", ("1",), "aime") for i in range(3)]


class Engine:
    def __init__(self):
        self.metrics = {}


def record(problem, sample, correct=True, length=100):
    reason = "equal" if correct else "unequal"
    return Record("aime", problem.id, sample, "</think>\\boxed{1}", length, "stop", correct, reason)


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(1) as made:
        yield made


def test_a_forecast_says_about_and_at_most():
    assert forecast(960, 90_000, 2_400.0) == (
        "960 responses at 2,400 tokens/s (measured): about 5:00:00 if they take 50% of 90,000 tokens, at most 10:00:00"
    )


def test_time_left_begins_at_half_the_limit_and_ends_at_nothing():
    assert seconds_left(10, 1000, [], 0, 100.0) == 50.0
    assert seconds_left(0, 1000, [300] * 10, 0, 100.0) == 0
    assert seconds_left(10, 1000, [], 9_000, 100.0) == 10.0  # nearly all of ten responses that take all they may


def test_time_left_is_near_the_truth_half_way():
    """Lengths of geometric responses, of which the short ones end first."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(1 / 2000, 1000), 10_000)
    at = 1500  # tokens that all of them have been sampled for, side by side
    ended, running = lengths[lengths <= at], int((lengths > at).sum()) * at
    left = seconds_left(1000 - len(ended), 10_000, ended.tolist(), running, 1.0)
    truth = lengths.sum() - ended.sum() - running
    assert left == pytest.approx(truth, rel=1 / 3)


def test_the_early_table_has_what_is_complete(pool):
    engine = Engine()
    outlook = Outlook(engine, {2: PROBLEMS}, 1000)
    outlook.begin()
    assert outlook.table(pool) is None
    assert outlook.left() == ""
    given = [record(PROBLEMS[0], 0), record(PROBLEMS[0], 1, False), record(PROBLEMS[2], 0), record(PROBLEMS[1], 1)]
    for one in given:
        outlook.add(one)
    problems, records = outlook.complete()
    assert (problems, records) == ([PROBLEMS[0]], given[:2])
    scores = summarize(problems, records, pool)
    assert scores["aime"]["avg@2"]["mean"] == 0.5
    text = Console(width=100, record=True, quiet=False)
    with text.capture() as captured:
        text.print(outlook.table(pool))
    assert "so far: 1 of 3 problems" in captured.get()
    assert "50.0" in captured.get()
    engine.metrics = {"tokens": 600, "seconds": 2.0}
    assert outlook.left() == f"about 0:{round(2 * (400 + 200 + 500) / 5 / 300):02} left at 300 tokens/s"


def test_it_is_told_while_the_evaluation_runs(pool, monkeypatch, capsys):
    monkeypatch.setattr(module, "FIRST_S", 0.0)
    monkeypatch.setattr(module, "TICK_S", 0.01)
    outlook = Outlook(Engine(), {1: PROBLEMS[:2]}, 1000)
    outlook.add(record(PROBLEMS[0], 0))
    done = module.threading.Event()
    monkeypatch.setattr(Outlook, "left", lambda self: done.set() or "about 5:00 left")
    with module.told(outlook, pool):
        assert done.wait(20)
    assert "so far: 1 of 2 problems" in (out := capsys.readouterr().out)
    assert "about 5:00 left" in out


def test_an_evaluation_says_how_long_it_takes_and_ends_as_one_that_did_not(tiny_config, tmp_path, monkeypatch, capsys):
    config = tiny_config(**{"evaluation.max_response_tokens": 72})
    first = job.run(config, tmp_path / "first")
    said = re.search(r"evaluation: 8 responses at [\d,]+ tokens/s \(measured\): about [\d:]+", capsys.readouterr().out)
    assert said
    job.run(config, tmp_path / "first")  # nothing is missing, and nothing is measured
    monkeypatch.setattr(job, "WORTH_IT", 9)
    again = job.run(config, tmp_path / "again")
    assert "(measured)" not in capsys.readouterr().out
    assert again == first
