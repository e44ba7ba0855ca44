import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from polaris_jax import config as configs
from polaris_jax.rl.packing import Sequence, from_rollouts, pack, rows_of
from polaris_jax.sharding.mesh import AXES
from polaris_jax.sharding.rows import row_groups
from tests.conftest import CONFIGS


def updates(row_lengths=(16, 48), rows=4, minibatches=1):
    return ConfigDict(dict(row_lengths=row_lengths, rows=rows, minibatches=minibatches))


def unpack(batches):
    """What is in the batches: one tuple of a segment's (token, target, mask, advantage, log-prob) a sequence."""
    found = []
    for batch in batches:
        for row in range(len(batch.tokens)):
            for segment in np.unique(batch.segment_ids[row]):
                places = np.flatnonzero(batch.segment_ids[row] == segment)
                if segment == 0:
                    assert not batch.mask[row, places].any()
                    continue
                assert (np.diff(places) == 1).all()
                assert (batch.positions[row, places] == np.arange(len(places))).all()
                fields = (batch.tokens, batch.targets, batch.mask, batch.advantages, batch.behaviour_logprobs)
                marked = batch.off_policy[row, places[0]]
                found.append((*(tuple(field[row, places].tolist()) for field in fields), bool(marked)))
    return sorted(found)


def expected(sequences):
    made = []
    for s in sequences:
        mask, logprobs = s.mask[1:], s.behaviour_logprobs[1:]
        fields = (s.tokens[:-1], s.tokens[1:], mask, np.float32(s.advantage) * mask, logprobs)
        made.append((*(tuple(field.tolist()) for field in fields), s.off_policy))
    return sorted(made)


def random_sequences(lengths, rng):
    return [
        Sequence(
            rng.integers(0, 99, n).astype(np.int32), (rng.random(n) < 0.5).astype(np.float32), float(rng.normal()),
            rng.normal(size=n).astype(np.float32), bool(rng.random() < 0.2),
        )
        for n in lengths
    ]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 49), min_size=1, max_size=40), st.data())
def test_every_sequence_is_packed_whole_and_once(lengths, data):
    rows, groups, minibatches = (data.draw(st.integers(*bounds)) for bounds in ((0, 9), (1, 5), (1, 3)))
    sequences = random_sequences(lengths, np.random.default_rng(data.draw(st.integers(0, 99))))
    batches, metrics = pack(sequences, updates(rows=rows, minibatches=minibatches), groups=groups)
    assert unpack(batches) == expected(sequences)
    most = 48 * groups * max(1, math.ceil(rows / groups))
    assert all(batch.tokens.shape[1] in (16, 48) and batch.tokens.size <= most for batch in batches)
    assert all(len(batch.tokens) % groups == 0 for batch in batches)
    assert len(batches) % minibatches == 0
    places = sum(batch.tokens.size for batch in batches if batch.segment_ids.any())
    assert metrics["packing_efficiency"] == pytest.approx(sum(n - 1 for n in lengths) / places)


def test_alone_each_sequence_has_a_row_of_its_own():
    sequences = random_sequences([5, 30, 9, 2, 49, 17, 18], np.random.default_rng(0))
    batches, _ = pack(sequences, updates(), alone=True)
    assert unpack(batches) == expected(sequences)
    rows = [row for batch in batches for row in batch.segment_ids if row.any()]
    assert len(rows) == len(sequences)
    assert sum(len(row) == 16 for row in rows) == 4


def test_minibatches_deal_sequences_in_turn():
    sequences = random_sequences([30, 5, 40, 6, 20, 7], np.random.default_rng(0))
    batches, _ = pack(sequences, updates(minibatches=2))
    half = len(batches) // 2
    assert unpack(batches[:half]) == expected(sequences[::2])
    assert unpack(batches[half:]) == expected(sequences[1::2])


@pytest.mark.parametrize(("length", "rows"), [(16_384, 24), (32_768, 8), (53_248, 8)])
def test_short_rows_come_as_many_as_take_the_slots_of_the_longest(length, rows):
    assert rows_of(updates(row_lengths=(16_384, 32_768, 53_248), rows=8), length, 8) == rows


@pytest.mark.parametrize(("rows", "groups", "expected"), [(0, 8, 8), (8, 8, 8), (8, 32, 32), (9, 8, 16), (8, 1, 8)])
def test_rows_suit_the_devices(rows, groups, expected):
    assert rows_of(updates(rows=rows), 48, groups) == expected


@pytest.mark.parametrize(
    ("count", "rows"),
    [(0, []), (1, [4]), (4, [4]), (5, [4, 4]), (14, [4, 4, 4, 4]), (15, [18]), (18, [18]), (19, [18, 4]),
     (36, [18, 18]), (41, [18, 18, 4, 4])],
)  # fmt: skip
def test_batches_of_a_length_are_full_ones_and_for_the_rest_quarters(count, rows):
    sequences = random_sequences([49] + [17] * count, np.random.default_rng(0))
    batches, _ = pack(sequences, updates(row_lengths=(16, 48), rows=6), alone=True)
    assert [len(batch.tokens) for batch in batches if batch.tokens.shape[1] == 16] == rows


@pytest.mark.parametrize("rows", [0, 8])
def test_the_efficiency_counts_all_that_the_devices_hold(rows):
    mesh, rng = AbstractMesh((2, 16, 1, 1), AXES), np.random.default_rng(0)
    sequences = random_sequences(rng.integers(2, 49, 300), rng)
    batches, metrics = pack(sequences, updates(row_lengths=(48,), rows=rows), groups=row_groups(mesh))
    places = sum((len(batch.tokens) + -len(batch.tokens) % 32) * 48 for batch in batches)
    assert metrics["packing_efficiency"] == pytest.approx(sum(len(s.tokens) - 1 for s in sequences) / places)
    assert metrics["packing_efficiency"] > 0.8  # with 8 rows a batch it would be a quarter of that


@pytest.mark.parametrize("alone", [False, True])
def test_the_programs_of_an_update_are_few(alone):
    """At most two for each length of a row, whatever is sampled: the shape of a batch is all that they depend on."""
    lengths, programs = (128, 192, 512), set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sizes = np.clip(rng.lognormal(4.5, 0.8, 256), 20, 500).astype(int)
        sequences = [
            Sequence(np.zeros(n, np.int32), (np.arange(n) >= prompt).astype(np.float32))
            for n, prompt in zip(sizes, rng.integers(1, 19, 256), strict=True)
        ]
        batches, _ = pack(sequences, updates(row_lengths=lengths, rows=0), groups=4, alone=alone)
        programs |= {batch.tokens.shape for batch in batches}
    assert len(programs) <= 3 * 2


def test_the_programs_of_an_update_of_the_4b():
    """At most six gradients, of 1,024 responses of a stage on eight devices."""
    config, programs = configs.load(CONFIGS / "polaris_4b.py"), set()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sizes = np.clip(rng.lognormal(9, 0.8, 1024), 200, 53_000).astype(int)
        sequences = [Sequence(np.zeros(n, np.int32), np.ones(n, np.float32)) for n in sizes]
        for alone in (False, True):
            batches, _ = pack(sequences, config.updates, groups=8, alone=alone)
            programs |= {batch.tokens.shape for batch in batches}
    assert 3 <= len(programs) <= 6


def test_many_short_sequences_fill_their_rows():
    rng = np.random.default_rng(0)
    sequences = random_sequences(rng.integers(60, 101, 256), rng)
    _, metrics = pack(sequences, updates(row_lengths=(512,), rows=8))
    assert metrics["packing_efficiency"] > 0.9


@pytest.mark.parametrize("length", [1, 50])
def test_what_no_row_holds_is_refused_in_words(length):
    with pytest.raises(ValueError, match=rf"a sequence of {length} tokens: rows hold 2 to 49; see updates.row_lengths"):
        pack(random_sequences([5, length], np.random.default_rng(0)), updates())


def test_truncated_responses_can_be_left_out(groups):
    advantages = np.arange(12, dtype=np.float32).reshape(3, 4)
    cut = [replace(rollout, finish_reason="length") for rollout in groups[1].rollouts[:2]]
    groups = [groups[0], groups[1].replace(rollouts=(*cut, *groups[1].rollouts[2:])), groups[2]]
    kept = from_rollouts(groups, advantages, frozenset({(1, 1), (1, 2)}), truncated=False)
    assert [sequence.advantage for sequence in kept] == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    assert [sequence.advantage for sequence in kept if sequence.off_policy] == [6]
    assert len(from_rollouts(groups, advantages)) == 12


def test_from_rollouts_learns_the_response_only(groups):
    advantages = np.arange(12, dtype=np.float32).reshape(3, 4)
    sequences = from_rollouts(groups, advantages, off_policy=frozenset({(1, 2)}))
    for i, sequence in enumerate(sequences):
        rollout = groups[i // 4].rollouts[i % 4]
        prompt = len(rollout.prompt_tokens)
        assert sequence.tokens.tolist() == [*rollout.prompt_tokens, *rollout.tokens]
        assert sequence.mask.tolist() == [0] * prompt + [1] * len(rollout.tokens)
        assert sequence.behaviour_logprobs[prompt:].tolist() == rollout.logprobs.tolist()
        assert sequence.advantage == i
        assert sequence.off_policy == (i == 6)
