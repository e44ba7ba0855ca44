from dataclasses import replace

import numpy as np
import pytest
from ml_collections import ConfigDict

from polaris_jax.data.curriculum import Curriculum, draw, drop_easy, new_stage, remaining, visited
from polaris_jax.types import Group, Problem, Prompt

DATA = ConfigDict(dict(drop_above=0.9, drop_by="mean"))
PROBLEMS = [Problem(str(i), f"question {i}", ("1",)) for i in range(10)]


def batches(count, steps, seed=0, start=None):
    curriculum = start or Curriculum()
    for _ in range(steps):
        batch, curriculum = draw(curriculum, PROBLEMS, count, seed)
        yield [p.id for p in batch], curriculum


def test_an_epoch_visits_every_problem_once():
    seen = [id_ for batch, _ in batches(5, 2) for id_ in batch]
    assert sorted(seen) == sorted(p.id for p in PROBLEMS)


def test_epochs_and_seeds_have_their_own_orders():
    first, _, second, _ = [batch for batch, _ in batches(5, 4)]
    other_seed = [batch for batch, _ in batches(5, 1, seed=1)]
    assert first != second
    assert [first] != other_seed


def test_going_on_from_a_saved_place_gives_the_same_batches():
    whole = list(batches(3, 8))
    assert list(batches(3, 5, start=whole[2][1])) == whole[3:]


def test_a_batch_never_repeats_a_problem():
    for batch, _ in batches(4, 20):
        assert len(set(batch)) == 4


def test_too_few_problems_are_refused():
    with pytest.raises(ValueError, match="needs 11 problems, there are 10"):
        draw(Curriculum(), PROBLEMS, 11, 0)


def test_accuracy_is_that_of_the_last_visit():
    curriculum = visited(Curriculum(), [group_of(PROBLEMS[0], 1)])
    curriculum = visited(curriculum, [group_of(PROBLEMS[0], 2)])
    assert curriculum.accuracy == {"0": 0.5}
    assert (curriculum.rollouts, curriculum.right) == ({"0": 8}, {"0": 3})


@pytest.mark.parametrize(("by", "dropped"), [("mean", ("1", "2")), ("last", ("0", "2"))])
def test_easy_is_what_a_stages_visits_found_on_average_or_the_last_one(by, dropped):
    visits = {"0": (0.0, 1.0), "1": (1.0, 0.75), "2": (1.0, 1.0)}
    curriculum, prompts = Curriculum(), prompts_with(None, None, None, None)
    for visit in range(2):
        for prompt in prompts[:3]:
            right = int(4 * visits[prompt.problem.id][visit])
            curriculum = visited(curriculum, [group_of(prompt.problem, right)])
    data = ConfigDict(dict(drop_above=0.8, drop_by=by))
    found = drop_easy(curriculum, prompts, data, coming=prompts, least=1)
    assert found.dropped == dropped
    # In the next stage its own visits count, and what it has not visited keeps its last accuracy.
    again = visited(new_stage(found), [group_of(prompts[0].problem, 4)])
    again = drop_easy(replace(again, dropped=()), prompts, data, coming=prompts, least=1)
    assert again.dropped == ("0", "2")


def group_of(problem, right):
    """Four responses, so many of them right, whose rewards say something else."""
    return Group(problem, (), np.float32([0.5, 1, 1, -1]), np.arange(4) < right)


def prompts_with(*accuracies):
    problems = [Problem(str(i), "", ("1",), accuracy=accuracy) for i, accuracy in enumerate(accuracies)]
    return [Prompt(problem, np.zeros(1, np.int32)) for problem in problems]


def test_easy_problems_are_dropped_by_their_last_visit_and_a_new_epoch_begins():
    prompts = prompts_with(1.0, 0.95, 0.9, 0.1, None, 1.0)
    before = Curriculum(epoch=2, position=4, accuracy={"3": 1.0, "0": 0.0})
    after = drop_easy(before, prompts, DATA, coming=prompts, least=2)
    assert set(after.dropped) == {"1", "3", "5"}  # "0" has become hard, "2" is not above, "4" was never measured
    assert (after.epoch, after.position, after.accuracy) == (3, 0, before.accuracy)
    assert [prompt.problem.id for prompt in remaining(after, prompts)] == ["0", "2", "4"]
    assert drop_easy(after, prompts, DATA, coming=prompts, least=2) == after


def test_a_step_is_left_enough_problems_and_the_hardest_stay():
    prompts = prompts_with(1.0, 0.92, 1.0, 0.95)
    assert set(drop_easy(Curriculum(), prompts, DATA, coming=prompts, least=2).dropped) == {"0", "2"}
    assert drop_easy(Curriculum(), prompts, DATA, coming=prompts, least=4) == Curriculum()


def test_of_other_problems_that_come_enough_are_left():
    prompts = prompts_with(1.0, 0.92, 1.0, 0.95)
    dropped = drop_easy(Curriculum(), prompts, DATA, coming=prompts[1:], least=2).dropped
    assert set(dropped) == {"0", "2"}  # "0" does not come any more, of the three that do two have to stay
