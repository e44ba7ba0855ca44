"""Several sources with weights: shares, epochs of each, and the same draws after a restart."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.data.curriculum import Curriculum, new_epoch
from polaris_jax.data.mixture import draw_mixed, mixed_sources
from polaris_jax.types import Problem, Prompt

START = Curriculum()


def prompts_of(**sizes):
    problems = [Problem(f"{source}{i}", "", ("1",), source) for source, size in sizes.items() for i in range(size)]
    return [Prompt(problem, np.zeros(1, np.int32)) for problem in problems]


def ids(prompts):
    return [prompt.problem.id for prompt in prompts]


def run(prompts, weights, count, steps, seed=0, curriculum=START):
    batches = []
    for _ in range(steps):
        batch, curriculum = draw_mixed(curriculum, prompts, count, seed, weights)
        batches.append(batch)
    return batches, curriculum


@settings(max_examples=30)
@given(st.integers(1, 99), st.integers(1, 99), st.integers(1, 9), st.integers(0, 99))
def test_each_source_gets_its_weight_and_no_problem_comes_twice_in_a_step(first, second, count, seed):
    prompts, weights = prompts_of(a=40, b=40), {"a": first / 100, "b": second / 100}
    batches, _ = run(prompts, weights, count, 40, seed)
    assert all(len(set(ids(batch))) == count for batch in batches)
    drawn = Counter(prompt.problem.source for batch in batches for prompt in batch)
    assert drawn["a"] == pytest.approx(40 * count * first / (first + second), abs=4)


def test_the_problems_of_a_source_come_once_in_its_epoch():
    batches, _ = run(prompts_of(a=12, b=100), {"a": 0.5, "b": 0.5}, 2, 11)
    of_a = [name for batch in batches for name in ids(batch) if name.startswith("a")]
    assert len(of_a) > 8
    assert len(set(of_a[:11])) == len(of_a[:11])


def test_draws_go_on_where_they_were_and_hang_on_the_seed():
    prompts, weights = prompts_of(a=10, b=7), {"a": 0.7, "b": 0.3}
    whole, _ = run(prompts, weights, 3, 8)
    first, between = run(prompts, weights, 3, 5)
    second, _ = run(prompts, weights, 3, 3, curriculum=between)
    assert list(map(ids, first + second)) == list(map(ids, whole))
    assert list(map(ids, run(prompts, weights, 3, 8, seed=1)[0])) != list(map(ids, whole))


def test_a_small_source_leaves_its_part_to_the_others_and_an_empty_one_all():
    prompts = prompts_of(a=2, b=20)
    batches, _ = run(prompts, {"a": 0.9, "b": 0.1}, 8, 5)
    assert all(Counter(p.problem.source for p in batch)["a"] == 2 for batch in batches)
    batches, _ = run(prompts_of(b=20), {"a": 0.9, "b": 0.1}, 8, 5)
    assert all(len(batch) == 8 for batch in batches)
    with pytest.raises(ValueError, match="needs 23 problems, there are 22"):
        run(prompts, {"a": 0.9, "b": 0.1}, 23, 1)


def test_a_new_epoch_is_one_of_every_source():
    _, curriculum = run(prompts_of(a=10, b=10), {"a": 0.5, "b": 0.5}, 4, 2)
    after = new_epoch(replace(curriculum, dropped=("a0",)))
    assert after.places == {"a": (1, 0), "b": (1, 0)}


def test_sources_are_called_by_short_names_that_differ():
    mix = [("x/train.jsonl", 0.5), ("y/train.jsonl", 0.5), ("data/other.parquet", 2), ("owner/name", 1)]
    assert mixed_sources(mix) == {"x/train.jsonl": 0.5, "y/train.jsonl": 0.5, "other": 2, "owner/name": 1}
