"""The host state comes back from a checkpoint to the bit."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.data.curriculum import Curriculum
from polaris_jax.training.checkpoint import Checkpoints
from polaris_jax.training.host import HostState, from_saved, to_saved
from polaris_jax.training.next_batch import SampledBatch
from polaris_jax.training.state import TrainState
from polaris_jax.types import Group, Problem, Rollout, Solution
from tests.conftest import smaller_config


def make_rollout(name, prompt, tokens, seed):
    rng = np.random.default_rng(seed)
    logprobs = -rng.exponential(size=tokens).astype(np.float32)
    ids = rng.integers(0, 2**31 - 1, prompt + tokens).astype(np.int32)
    return Rollout(name, seed % 8, ids[:prompt], ids[prompt:], logprobs, "stop" if seed % 2 else "length")


def compact(rollout):
    """As the rescue keeps it."""
    return replace(rollout, logprobs=rollout.logprobs.astype(np.float16))


names = st.text(min_size=1, max_size=5)
rollouts = st.builds(make_rollout, names, st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
curricula = st.builds(
    Curriculum,
    epoch=st.integers(0, 9),
    position=st.integers(0, 99),
    accuracy=st.dictionaries(names, st.sampled_from([k / 7 for k in range(8)]), max_size=3),
    rollouts=st.dictionaries(names, st.integers(1, 99), max_size=3),
    right=st.dictionaries(names, st.integers(0, 99), max_size=3),
    dropped=st.lists(names, max_size=3).map(tuple),
    solutions=st.dictionaries(names, st.builds(Solution, rollouts.map(compact), st.floats(-2, 2)), max_size=4),
    places=st.dictionaries(names, st.tuples(st.integers(0, 9), st.integers(0, 99)), max_size=2),
)
problems = st.builds(
    Problem, names, names, st.lists(names, max_size=2).map(tuple), names, st.none() | st.just(0.1),
    st.sampled_from(["math", "choice"]), names,
)  # fmt: skip
groups = st.builds(
    lambda problem, rollouts: Group(
        problem, tuple(rollouts), np.arange(len(rollouts), dtype=np.float32) / 3, np.arange(len(rollouts)) % 2 == 0
    ),
    problems,
    st.lists(rollouts, min_size=1, max_size=2),
)
batches = st.builds(
    SampledBatch, st.lists(groups, min_size=1, max_size=2), st.lists(st.lists(names)), st.lists(st.lists(names)),
    st.just({"seconds/rollout": 0.1}),
)  # fmt: skip
hosts = st.builds(
    HostState, curricula, st.integers(0, 3), st.integers(0, 99), st.floats(0, 2), st.none() | st.floats(0, 1),
    st.floats(0, 9), st.none() | batches,
)  # fmt: skip


def assert_equal(left, right):
    hosts = (replace(host, next_batch=None) for host in (left, right))
    plain = [replace(host, curriculum=replace(host.curriculum, solutions={})) for host in hosts]
    assert plain[0] == plain[1]
    ours, theirs = left.curriculum.solutions, right.curriculum.solutions
    assert list(ours) == list(theirs)  # the order says which is dropped first
    assert [ours[name].reward for name in ours] == [theirs[name].reward for name in theirs]
    pairs = [(ours[name].rollout, theirs[name].rollout) for name in ours]
    assert (left.next_batch is None) == (right.next_batch is None)
    if left.next_batch:
        assert left.next_batch[1:] == right.next_batch[1:]
        for one, other in zip(left.next_batch.groups, right.next_batch.groups, strict=True):
            assert one.problem == other.problem
            assert one.rewards.tobytes() == other.rewards.tobytes()
            assert one.correct.tobytes() == other.correct.tobytes()
            pairs += zip(one.rollouts, other.rollouts, strict=True)
    for one, other in pairs:
        assert (one.problem_id, one.sample, one.finish_reason) == (other.problem_id, other.sample, other.finish_reason)
        for field in ("prompt_tokens", "tokens", "logprobs"):
            assert getattr(one, field).tobytes() == getattr(other, field).tobytes()
            assert getattr(one, field).dtype == getattr(other, field).dtype


@settings(max_examples=30)
@given(hosts)
def test_it_survives_json_and_arrays(host):
    saved, arrays = to_saved(host)
    assert all(array.size for array in arrays.values())
    rollouts = {name: solution.rollout for name, solution in host.curriculum.solutions.items()}
    assert_equal(from_saved(json.loads(json.dumps(saved)), arrays, rollouts), host)


@pytest.mark.parametrize("solutions", [0, 3])
def test_it_survives_a_checkpoint(tmp_path, solutions):
    kept = {f"p{i}": Solution(compact(make_rollout(f"p{i}", 3, 5 + i, i)), i / 3) for i in range(solutions)}
    host = HostState(Curriculum(2, 5, {"a": 1 / 3}, {"a": 8}, {"a": 3}, ("b",), kept), 1, 10, 1.35, 0.1 + 0.2, 12.5)
    state = TrainState(jnp.int32(7), {"w": jnp.arange(3.0)}, {"m": jnp.zeros(3)})
    with Checkpoints(tmp_path, smaller_config().training) as checkpoints:
        checkpoints.save(state, host)
        checkpoints.wait()
        restored, found = checkpoints.restore(state)
    assert_equal(found, host)
    assert int(restored.step) == 7
