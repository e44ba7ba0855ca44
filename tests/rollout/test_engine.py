"""The engine gives, token for token, what one sequence at a time without a cache gives."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections import deque

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_jax.errors import UserError
from polaris_jax.models.presets import PRESETS, Yarn
from polaris_jax.rollout import RolloutEngine, Sampling, replica
from polaris_jax.rollout.engine import sampler_model
from polaris_jax.rollout.lengths import Lengths
from polaris_jax.rollout.platforms import PLATFORMS, Platform
from polaris_jax.rollout.replica import Replica, deal
from tests.rollout.conftest import obvious, random_prompts, rollout_config, trainer_logits

SAMPLED = Sampling(max_response_tokens=24, stop_ids=(3, 7))
PROMPTS = random_prompts(4, longest=24)
LIMITS = np.random.default_rng(1).integers(1, 25, (4, 3))
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("own", "longest", "original", "expected"),
    [
        (None, 40_960, 0, 40_960),
        (Yarn(1.5, 40_960, 1.0), 61_440, 0, 40_960),  # as an exported model names it
        (None, 40_960, 65_536, 65_536),
        (Yarn(1.5, 40_960, 1.0), 61_440, 65_536, 65_536),
    ],
)
def test_a_context_is_extended_from_the_length_it_was_trained_with(own, longest, original, expected):
    model = PRESETS["qwen3-4b"].replace(yarn=own, max_position_embeddings=longest)
    config = rollout_config(yarn_factor=1.5, yarn_original=original)
    assert sampler_model(model, config).yarn == Yarn(1.5, expected, 1.0)
    assert sampler_model(model, rollout_config()).yarn == own


def test_rows_without_a_token_are_never_sampled_nor_counted(model, params, mesh):
    known, temperature = 30, 5.0
    engine = RolloutEngine(model.replace(known_tokens=known), mesh, rollout_config())
    sampling = Sampling(temperature=temperature, max_response_tokens=24)
    rollouts = list(engine.generate(params, PROMPTS, 3, sampling, 5))
    assert {int(token) for rollout in rollouts for token in rollout.tokens} <= set(range(known))
    for rollout in rollouts:
        logits_TV = trainer_logits(model, params, rollout)[:, :known]
        logprobs_TV = jax.nn.log_softmax(logits_TV / temperature)
        found = np.take_along_axis(np.asarray(logprobs_TV), rollout.tokens[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(rollout.logprobs, found, atol=1e-4)


@pytest.fixture(scope="session")
def expected(model, params):
    """What the obvious sampler gives for PROMPTS x 3, per sampling."""
    known = {}

    def responses(sampling):
        if sampling not in known:
            known[sampling] = {
                (prompt.problem.id, k): obvious(model, params, prompt, k, sampling, 5, LIMITS[i, k])
                for i, prompt in enumerate(PROMPTS)
                for k in range(3)
            }
        return known[sampling]

    return responses


@pytest.fixture(scope="session")
def engine(model, mesh):
    """Shared, so that what it compiled is used again."""
    return RolloutEngine(model, mesh, rollout_config())


def generate(engine, params, sampling=SAMPLED, **more):
    return list(engine.generate(params, PROMPTS, 3, sampling, 5, limits=LIMITS, **more))


def check(rollouts, expected):
    assert len(rollouts) == len(expected)
    assert {(r.problem_id, r.sample) for r in rollouts} == set(expected)
    for r in rollouts:
        tokens, logprobs, reason = expected[r.problem_id, r.sample]
        assert r.tokens.tolist() == tokens
        assert r.finish_reason == reason
        np.testing.assert_allclose(r.logprobs, logprobs, atol=1e-4)


@pytest.mark.parametrize("page_size", [8, pytest.param(64, marks=slow)])
@pytest.mark.parametrize("slots", [pytest.param(1, marks=slow), 3, pytest.param(16, marks=slow)])
def test_equals_the_obvious_sampler(model, mesh, engine, params, expected, slots, page_size, monkeypatch):
    if (slots, page_size) != (engine.config.slots, engine.config.page_size):
        engine = RolloutEngine(model, mesh, rollout_config(slots=slots, page_size=page_size))
    check(generate(engine, params), expected(SAMPLED))
    monkeypatch.setattr(engine, "share_prefix", False)
    check(generate(engine, params), expected(SAMPLED))


@pytest.mark.parametrize(
    "change",
    [
        dict(temperature=0.0),
        pytest.param(dict(temperature=1.4, top_k=20, top_p=0.9), marks=slow),
        pytest.param(dict(prefix=(5, 3, 9)), marks=slow),
    ],
    ids=str,
)
def test_every_kind_of_sampling_equals_the_obvious_sampler(engine, params, expected, change):
    sampling = dataclasses.replace(SAMPLED, **change)
    limits = np.maximum(LIMITS, len(sampling.prefix) + 1)
    rollouts = list(engine.generate(params, PROMPTS, 3, sampling, 5, limits=limits))
    if not sampling.prefix:
        check(rollouts, expected(sampling))
    for r in rollouts:
        assert r.tokens[: len(sampling.prefix)].tolist() == list(sampling.prefix)


def test_a_pool_so_small_that_sequences_are_preempted(engine, params, expected, monkeypatch):
    monkeypatch.setattr(engine, "_pool_pages", lambda: 9)  # the longest sequence takes 6 of its 8 pages
    monkeypatch.setattr(Lengths, "left", lambda *_: 1)  # else few run at once
    check(generate(engine, params), expected(SAMPLED))
    assert engine.metrics["preempted"] >= 1


@slow
def test_the_way_of_accelerators_gives_the_same_tokens(model, mesh, params, expected, monkeypatch):
    """Pages read in each step, few sizes of calls, no pools kept; but for their kernels."""
    monkeypatch.setitem(PLATFORMS, "cpu", Platform("cpu"))
    engine = RolloutEngine(model, mesh, rollout_config())
    check(generate(engine, params), expected(SAMPLED))


def test_nothing_compiles_after_warm_up(engine, params):
    generate(engine, params)
    generate(engine, jax.tree.map(lambda x: x * 1.01, params))
    assert engine.metrics["compilations"] == 0


def test_logprobs_equal_the_trainers(engine, model, params):
    """Law 1. The trainer's forward pass: whole sequences, no cache."""
    sampling = dataclasses.replace(SAMPLED, temperature=1.3, untempered=True, alternatives=3)
    for r in generate(engine, params, sampling):
        logits = trainer_logits(model, params, r)
        tempered, raw = jax.nn.log_softmax(logits / 1.3), jax.nn.log_softmax(logits)
        index = np.arange(len(r.tokens)), r.tokens
        np.testing.assert_allclose(r.logprobs, tempered[index], atol=1e-4)
        np.testing.assert_allclose(r.untempered_logprobs, raw[index], atol=1e-4)
        np.testing.assert_allclose(r.alternative_logprobs, jax.lax.top_k(tempered, 3)[0], atol=1e-4)
        assert r.alternative_ids.shape == (len(r.tokens), 3)


@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=slow), pytest.param("float16", marks=slow)])
def test_half_precision_stays_near_the_trainer(model, mesh, params, dtype):
    """The mean |difference| of log-probs, that of a step's metrics; the target is 1e-3."""
    model = model.replace(dtype=dtype)
    params = params | {"embedding": params["embedding"] / 15}
    engine = RolloutEngine(model, mesh, rollout_config(page_size=64))
    differences = []
    for r in generate(engine, params):
        logprobs = jax.nn.log_softmax(trainer_logits(model, params, r))
        differences.append(np.abs(r.logprobs - logprobs[np.arange(len(r.tokens)), r.tokens]))
    mean = np.concatenate(differences).mean()
    print(f"{dtype}: mean |difference| of log-probs {mean:.2e}")
    assert mean < 1e-3


def test_a_long_prompt_is_prefilled_in_chunks(model, mesh, params, monkeypatch):
    monkeypatch.setattr(replica, "PREFILL_CHUNKS", (16,))
    engine = RolloutEngine(model, mesh, rollout_config(page_size=16))
    prompts = random_prompts(3, seed=2, longest=100)
    sampling = Sampling(max_response_tokens=6)
    got = list(engine.generate(params, prompts, 1, sampling, 9))
    check(got, {(p.problem.id, 0): obvious(model, params, p, 0, sampling, 9, 6) for p in prompts})


@given(st.integers(1, 1024), st.integers(1, 64), st.booleans())
def test_prefill_pads_little_where_padding_is_dear(tokens, chunks, few):
    length = replica.chunk_size(tokens, replica.PREFILL_CHUNKS, few)
    rows = replica.batch_size(chunks, few)
    assert tokens <= length
    if few:
        assert chunks <= rows
    else:
        assert length < 2 * max(tokens, replica.PREFILL_SHORTEST)
        assert min(chunks, rows) >= 0.75 * rows


def test_an_interrupt_loses_nothing_that_is_finished(engine, params, monkeypatch):
    """SIGINT in the middle of a device call takes effect after its finished rollouts were yielded."""
    seen, calls = [], []
    start = engine._programs.decode
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored

    def interrupted(*args):
        calls.append(0)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return start(*args)

    def collect():
        for rollout in engine.generate(params, PROMPTS, 3, SAMPLED, 5, limits=LIMITS):
            seen.append(rollout)

    monkeypatch.setattr(engine._programs, "decode", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            collect()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(calls) == 3
    assert len(seen) == engine.metrics["finished"] < 12


def test_stop_ends_after_the_present_call(engine, params):
    rollouts = []
    for rollout in engine.generate(params, PROMPTS, 3, SAMPLED, 5, limits=LIMITS):
        rollouts.append(rollout)
        engine.stop()
    assert 0 < len(rollouts) < 12


def test_what_cannot_fit_is_refused_in_words(model, mesh, engine, params):
    with pytest.raises(UserError, match=r"max_response_tokens=40 take 5 pages of .* MiB, rollout.cache_gib=1e-05 has"):
        RolloutEngine(model, mesh, rollout_config(cache_gib=1e-5))
    with pytest.raises(UserError, match=r"sampling needs .* GiB a device, which has"):
        RolloutEngine(model, mesh, rollout_config(slots=10**9))
    small = RolloutEngine(model, mesh, rollout_config(cache_gib=5e-5))
    with pytest.raises(UserError, match=r"prompt \+ response of .* tokens take .* pages of 8, the pool has"):
        next(small.generate(params, PROMPTS, 1, Sampling(max_response_tokens=200), 0))


@pytest.fixture
def two_replicas(model, mesh, monkeypatch):
    """An engine whose two replicas share the one device."""
    monkeypatch.setattr("polaris_jax.rollout.engine.replica_meshes", lambda mesh: [mesh, mesh])
    return RolloutEngine(model, mesh, rollout_config())


def test_replicas_go_their_own_pace_to_the_same_tokens(two_replicas, params, expected, monkeypatch):
    """While one replica's first call takes for ever, the other samples all that it was given."""
    own = Replica.is_ready.fget

    def is_ready(self):
        fast = two_replicas._replicas[1]
        return own(self) and (self is fast or not fast.responses)

    monkeypatch.setattr(Replica, "is_ready", property(is_ready))
    rollouts = generate(two_replicas, params)
    check(rollouts, expected(SAMPLED))
    replicas = [{r.problem_id for r in half} for half in (rollouts[:6], rollouts[6:])]
    assert replicas[0].isdisjoint(replicas[1])  # two groups of three each, one replica after the other


def test_two_replicas_give_the_same_to_the_bit_however_fast_each_is(two_replicas, params, monkeypatch):
    own, found = Replica.is_ready.fget, []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        monkeypatch.setattr(Replica, "is_ready", property(lambda self, rng=rng: rng.random() < 0.3 and own(self)))
        rollouts = sorted(generate(two_replicas, params), key=lambda r: (r.problem_id, r.sample))
        found.append([(r.tokens.tobytes(), r.logprobs.tobytes()) for r in rollouts])
    assert found[0] == found[1]


class Listing:
    """Stands in for a replica and lists what it is given."""

    def __init__(self):
        self.limits = []

    def submit(self, responses, limits):
        self.limits += limits


@pytest.mark.parametrize("groups", [8, 7, 40])
def test_groups_are_dealt_evenly(groups):
    """No replica has more to do than another by more than a group, where that is known."""
    rng, replicas = np.random.default_rng(groups), [Listing() for _ in range(4)]
    queue = deque(([None] * 4, rng.integers(1, 100, 4).tolist()) for _ in range(groups))
    largest = max(sum(limits) for _, limits in queue)
    deal(queue, replicas)
    assert sum(len(replica.limits) for replica in replicas) == 4 * groups
    tokens = [sum(replica.limits) for replica in replicas]
    assert max(tokens) - min(tokens) <= largest


@slow
def test_in_half_precision_a_repeated_call_is_the_same_and_another_batch_a_rounding_apart(model, mesh, params):
    """What docs/reliability.md promises there. Each response is drawn from the trainer's distribution all the same."""
    model = model.replace(dtype="bfloat16")
    params = params | {"embedding": params["embedding"] / 15}
    engine, wider = RolloutEngine(model, mesh, rollout_config()), RolloutEngine(model, mesh, rollout_config(slots=12))
    first, again, other = (
        {(r.problem_id, r.sample): r for r in generate(e, params)} for e in (engine, engine, wider)
    )  # fmt: skip
    for address, one in first.items():
        assert one.tokens.tobytes() == again[address].tokens.tobytes()
        assert one.logprobs.tobytes() == again[address].logprobs.tobytes()
        two = other[address]
        n = min(len(one.tokens), len(two.tokens))
        same = int(np.argmin(np.append(one.tokens[:n] == two.tokens[:n], False)))
        np.testing.assert_allclose(one.logprobs[:same], two.logprobs[:same], atol=0.02)
        for r in (one, two):
            logprobs = jax.nn.log_softmax(trainer_logits(model, params, r))
            np.testing.assert_allclose(r.logprobs, logprobs[np.arange(len(r.tokens)), r.tokens], atol=0.02)
