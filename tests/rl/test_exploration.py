"""Rescue and substitution replace what they should, uniformly, and leave alone what they should."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from configs.base import get_config
from polaris_jax.rl.advantages import group_advantages
from polaris_jax.rl.exploration import explore, is_mixed, remember, rescue, substitute
from polaris_jax.rl.packing import from_rollouts, pack
from polaris_jax.types import Group, Problem, Rollout, Solution

DRAWS = 4000
KEPT_BYTES = 2 * 4 + 3 * (4 + 2)  # of a kept `rollout`: prompt, and tokens with their log-probs


def rollout(name, sample, tokens=3):
    logprobs = np.float32([-0.1 * (sample + 1)] * tokens)
    return Rollout(name, sample, np.arange(2, dtype=np.int32), np.arange(tokens, dtype=np.int32), logprobs, "stop")


def group(name, rewards):
    rollouts = tuple(rollout(name, sample) for sample in range(len(rewards)))
    return Group(Problem(name, "", ("1",)), rollouts, np.float32(rewards), np.asarray(rewards) == 1)


def solution(name, tokens=3):
    return Solution(replace(rollout(name, 7, tokens), finish_reason="earlier"), 1.0)


@pytest.fixture
def config():
    c = get_config()
    c.rollout.max_response_tokens = 100
    return c


def fits(counts):
    """Whether counts could be those of a uniform draw; of 1,000 right ones this refuses one."""
    return stats.chisquare(counts).pvalue > 1e-3


def test_a_failed_group_gets_its_own_solution_and_the_others_stay():
    groups = [group("a", [0, 0, 0, 0]), group("b", [0, 1, 0, 0]), group("c", [0, 0, 0, 0]), group("d", [1, 1, 1, 1])]
    solutions = {name: solution(name) for name in "abd"}
    found, marks = rescue(groups, solutions, 100, np.random.default_rng(0))
    assert found[1:] == groups[1:]  # mixed, nothing in the buffer, all right
    ((n, sample),) = marks
    assert n == 0
    assert found[0].rollouts[sample] is solutions["a"].rollout
    assert found[0].rewards.tolist() == [float(g == sample) for g in range(4)]
    others = [g for g in range(4) if g != sample]
    assert [found[0].rollouts[g] for g in others] == [groups[0].rollouts[g] for g in others]
    assert groups[0].rewards.sum() == 0  # what was sampled is not written over


def test_the_replaced_rollout_is_drawn_uniformly():
    rng, groups, solutions = np.random.default_rng(0), [group("a", [0] * 8)], {"a": solution("a")}
    replaced = [sample for _ in range(DRAWS) for _, sample in rescue(groups, solutions, 100, rng)[1]]
    assert fits(np.bincount(replaced, minlength=8))


def test_a_solution_longer_than_the_stage_allows_is_not_used():
    groups = [group("a", [0, 0])]
    for tokens, expected in ((10, 1), (11, 0)):
        assert len(rescue(groups, {"a": solution("a", tokens)}, 10, np.random.default_rng(0))[1]) == expected


def test_groups_of_equal_rewards_are_replaced_by_mixed_ones_uniformly():
    groups = [group("a", [0, 0]), group("b", [0, 1]), group("c", [1, 1]), group("d", [1, 0]), group("e", [1, 0])]
    rng, drawn = np.random.default_rng(0), {0: [], 2: []}
    for _ in range(DRAWS):
        found, _ = substitute(groups, frozenset(), rng)
        assert [found[n] for n in (1, 3, 4)] == [groups[n] for n in (1, 3, 4)]
        for n in drawn:
            drawn[n].append("bde".index(found[n].problem.id))
    assert all(fits(np.bincount(places, minlength=3)) for places in drawn.values())
    pairs = np.array(drawn[0]) * 3 + np.array(drawn[2])
    counts = np.bincount(pairs, minlength=9).reshape(3, 3)
    assert not counts.diagonal().any()  # three donors suffice for two places
    assert fits(counts[~np.eye(3, dtype=bool)])


@pytest.mark.parametrize(("mixed", "most"), [(64, 1), (96, 1), (40, 3), (1, 127)])
def test_donors_are_drawn_without_replacement_while_they_suffice(mixed, most):
    groups = [group(str(n), [0, 1] if n < mixed else [0, 0]) for n in range(128)]
    found, _ = substitute(groups, frozenset(), np.random.default_rng(0))
    copies = Counter(g.problem.id for g in found[mixed:])
    assert max(copies.values()) == most
    assert len(copies) == min(mixed, 128 - mixed)


def test_without_a_mixed_group_all_stay():
    groups = [group("a", [0, 0]), group("b", [1, 1])]
    assert substitute(groups, frozenset({(0, 1)}), np.random.default_rng(0)) == (groups, frozenset({(0, 1)}))


def test_a_rescued_rollout_stays_off_policy_in_every_copy(config):
    groups = [group("a", [0, 0, 0, 0]), group("b", [1, 1, 1, 1]), group("c", [0, 0, 0, 0])]
    found = explore(groups, {"a": solution("a")}, config, step=3)
    assert (found.rescued, found.substituted, found.mixed) == (1, 2, 1)
    assert [g.problem.id for g in found.groups] == ["a", "a", "a"]
    ((_, sample),) = {(0, sample) for _, sample in found.off_policy}
    assert found.off_policy == {(n, sample) for n in range(3)}
    advantages = group_advantages(np.stack([g.rewards for g in found.groups]))
    # rewards 1, 0, 0, 0: mean 1/4; deviations 3/4 and -1/4; variance (9 + 3) / 16 / 3 = 1/4, standard deviation 1/2
    assert advantages[:, sample] == pytest.approx(np.full(3, 1.5), rel=1e-5)
    assert np.delete(advantages, sample, axis=1) == pytest.approx(np.full((3, 3), -0.5), rel=1e-5)
    sequences = from_rollouts(found.groups, advantages, found.off_policy)
    assert sum(sequence.off_policy for sequence in sequences) == 3
    (batch,), _ = pack(sequences, config.updates)
    assert batch.off_policy.sum() == 3 * 4  # 2 + 3 tokens each take 4 places
    trained = batch.behaviour_logprobs[batch.off_policy & (batch.mask > 0)]
    np.testing.assert_array_equal(trained, np.tile(solution("a").rollout.logprobs, 3))


def test_right_is_what_the_verifier_says_and_a_rescued_response_keeps_its_reward(config):
    """Rewards of one's own may lift a wrong response over a right one."""
    right = replace(group("a", [0, 0, 0]), rewards=np.float32([1, 1, 0.3]), correct=np.array([False, False, True]))
    kept = remember({}, [right], 1 << 20)
    assert (kept["a"].rollout.sample, kept["a"].reward) == (2, pytest.approx(0.3))
    wrong = replace(group("a", [0, 0, 0]), rewards=np.float32([1, 1, 1]))
    found = explore([wrong], kept, config, 0)
    assert (found.rescued, found.mixed) == (1, 1)
    (((_, sample),), (rescued,)) = found.off_policy, found.groups
    assert rescued.rewards.tolist() == [pytest.approx(0.3) if i == sample else 1 for i in range(3)]
    assert rescued.correct.tolist() == [i == sample for i in range(3)]


def test_each_part_can_be_switched_off(config):
    groups = [group("a", [0, 0]), group("b", [0, 1])]
    config.algorithm.rescue = False
    assert explore(groups, {"a": solution("a")}, config, 0)[1:] == (frozenset(), 0, 1, 1)
    config.algorithm.substitute = False
    assert explore(groups, {"a": solution("a")}, config, 0) == (groups, frozenset(), 0, 0, 1)


def test_the_newest_right_response_is_kept_and_the_least_recently_written_goes():
    solutions = remember({}, [group("a", [0, 1, 1]), group("b", [0, 0, 0]), group("c", [1, 0, 0])], 3 * KEPT_BYTES)
    assert {name: kept.rollout.sample for name, kept in solutions.items()} == {"a": 1, "c": 0}
    solutions = remember(solutions, [group("a", [0, 0, 1]), group("c", [0, 0, 0])], 3 * KEPT_BYTES)
    assert {name: kept.rollout.sample for name, kept in solutions.items()} == {"a": 2, "c": 0}
    solutions = remember(solutions, [group("d", [1, 1, 1])], 2 * KEPT_BYTES)
    assert list(solutions) == ["a", "d"]  # "c" was written before "a"


def test_a_long_solution_takes_the_place_of_several_and_log_probs_are_kept_in_half():
    short = remember({}, [group(name, [1]) for name in "abc"], 3 * KEPT_BYTES)
    long = Group(Problem("d", "", ("1",)), (rollout("d", 0, tokens=6),), np.float32([1]), np.array([True]))
    kept = remember(short, [long], 3 * KEPT_BYTES)
    assert list(kept) == ["c", "d"]
    assert sum(r.prompt_tokens.nbytes + r.tokens.nbytes + r.logprobs.nbytes for r, _ in kept.values()) == 26 + 44
    np.testing.assert_allclose(kept["d"].rollout.logprobs, long.rollouts[0].logprobs, rtol=5e-4)
    assert remember(short, [long], 43) == {}


rewards = st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4)


@given(st.lists(st.tuples(rewards, st.booleans()), min_size=1, max_size=6), st.integers(0, 99), st.integers(0, 99))
def test_what_holds_of_every_batch(drawn, seed, step):
    config = get_config()
    config.seed = seed
    groups = [group(str(n), values) for n, (values, _) in enumerate(drawn)]
    solutions = {str(n): solution(str(n)) for n, (_, known) in enumerate(drawn) if known}
    found = explore(groups, solutions, config, step)
    assert len(found.groups) == len(groups)
    same = explore(groups, solutions, config, step)
    assert [[r.problem_id for r in g.rollouts] for g in same.groups] == [
        [r.problem_id for r in g.rollouts] for g in found.groups
    ]
    assert same[1:] == found[1:]
    expected_rescues = sum(g.accuracy == 0 and g.problem.id in solutions for g in groups)
    assert found.rescued == expected_rescues
    assert found.mixed == expected_rescues + sum(map(is_mixed, groups))
    assert found.substituted == (len(groups) - found.mixed if found.mixed else 0)
    if found.mixed:
        assert all(map(is_mixed, found.groups))
    earlier = {(n, s) for n, g in enumerate(found.groups) for s, r in enumerate(g.rollouts) if r.sample == 7}
    assert found.off_policy == earlier


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), rewards), max_size=5), max_size=6), st.integers(1, 5))
def test_the_buffer_equals_a_slow_list(visits, most):
    slow, solutions = [], {}
    for visit in visits:
        groups = [group(str(name), values) for name, values in dict(visit).items()]
        solutions = remember(solutions, groups, most * KEPT_BYTES)
        for visited in groups:
            right = [r for r, reward in zip(visited.rollouts, visited.rewards, strict=True) if reward == 1]
            if right:
                slow = [(name, kept) for name, kept in slow if name != visited.problem.id]
                slow.append((visited.problem.id, right[0]))
        slow = slow[-most:]
    assert list(solutions) == [name for name, _ in slow]
    assert [r.sample for r, _ in solutions.values()] == [r.sample for _, r in slow]
