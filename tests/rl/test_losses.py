"""Every loss equals a slow torch version written from its paper's formula, in value and gradient, on ragged groups."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.rl import losses
from polaris_jax.rl.advantages import ADVANTAGES
from polaris_jax.rl.losses import (
    LOSSES,
    SEQUENCE_MASKS,
    batch_loss,
    covariance_clip,
    denominator,
    entropy_weight,
    k3,
    next_entropy_coefficient,
    segment_sums,
    token_weights,
)
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.types import PackedBatch

torch = pytest.importorskip("torch")

LENGTHS = [[5, 1, 9], [3, 12], [16]]  # trained tokens of the sequences of each row of 20 places, after one of a prompt
MAX_TOKENS = 13

PAPERS = {
    "GRPO": dict(loss="grpo", aggregation="sequence", clip=(0.2, 0.2)),
    "DAPO": dict(loss="grpo", aggregation="token", clip=(0.2, 0.28)),
    "Dr. GRPO": dict(loss="grpo", aggregation="constant", clip=(0.2, 0.2)),
    "dual clip": dict(loss="grpo", aggregation="token", clip=(0.2, 0.28), dual_clip=1.5),
    "GSPO": dict(loss="gspo", aggregation="sequence", clip=(0.05, 0.08)),
    "CISPO": dict(loss="cispo", aggregation="token", clip=(1.0, 0.28)),
    "RLOO": dict(loss="grpo", aggregation="constant", clip=(0.2, 0.28)),
    "SFT": dict(loss="sft", aggregation="token", clip=(0.2, 0.28)),
}


@pytest.fixture(scope="module")
def case():
    """Packed rows, and current and old log-probs that are up to e^0.6 apart."""
    rng = np.random.default_rng(0)
    shape = (3, 20)
    segment_ids, mask, advantages = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for segment, length in enumerate(lengths, start=1):
            segment_ids[row, start : start + length + 1] = segment
            mask[row, start + 1 : start + length + 1] = 1
            advantages[row, start + 1 : start + length + 1] = rng.normal()
            start += length + 1
    old = -rng.random(shape).astype(np.float32) * 3
    logprobs = old + rng.uniform(-0.6, 0.6, shape).astype(np.float32)
    zeros = np.zeros(shape, np.int32)
    return PackedBatch(zeros, zeros, zeros, segment_ids, mask, advantages, old, zeros > 0), logprobs, old


def slow(name, rows, logprobs, old):
    """The papers' formulas on one sequence after the other, in float64 torch."""
    p = PAPERS[name]
    below, above = p["clip"]
    total, tokens, sequences = 0.0, 0, 0
    for row in range(len(LENGTHS)):
        for segment in range(1, len(LENGTHS[row]) + 1):
            where = np.flatnonzero((rows.segment_ids[row] == segment) & (rows.mask[row] > 0))
            logp, before = logprobs[row, where], torch.tensor(old[row, where], dtype=torch.float64)
            advantage, n = float(rows.advantages[row, where[0]]), len(where)
            ratio = torch.exp(logp - before)
            if name in ("GRPO", "DAPO", "Dr. GRPO", "dual clip"):
                objective = torch.minimum(ratio * advantage, torch.clamp(ratio, 1 - below, 1 + above) * advantage)
                if name == "dual clip" and advantage < 0:
                    objective = torch.maximum(objective, torch.tensor(1.5 * advantage))
                objective = objective.sum()
            elif name == "GSPO":
                s = (torch.exp(logp.sum()) / torch.exp(before.sum())) ** (1 / n)
                objective = n * torch.minimum(s * advantage, torch.clamp(s, 1 - below, 1 + above) * advantage)
            elif name == "CISPO":
                objective = (torch.clamp(ratio, 1 - below, 1 + above).detach() * advantage * logp).sum()
            elif name == "RLOO":  # the gradient is that of the advantage times the log-prob of the whole sequence
                objective = advantage * logp.sum() + advantage * (n - logp.detach().sum())
            else:
                objective = logp.sum()
            total = total - (objective / n if p["aggregation"] == "sequence" else objective)
            tokens, sequences = tokens + n, sequences + 1
    return total / {"token": tokens, "sequence": sequences, "constant": sequences * MAX_TOKENS}[p["aggregation"]]


@pytest.mark.parametrize("name", PAPERS)
def test_value_and_gradient_equal_the_papers_formula(name, case, config):
    rows, logprobs, old = case
    old = logprobs if name == "RLOO" else old  # its gradient is that of the policy that sampled
    config.algorithm.update(PAPERS[name])

    def ours(logprobs):
        loss, _, _ = LOSSES[config.algorithm.loss](logprobs, old, rows, config.algorithm)
        sequences = sum(map(len, LENGTHS))
        count = denominator(config.algorithm.aggregation, rows.mask.sum(), sequences, MAX_TOKENS)
        return jnp.sum(token_weights(rows, config.algorithm.aggregation) * loss) / count

    value, grad = jax.value_and_grad(ours)(jnp.asarray(logprobs))
    leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    expected = slow(name, rows, leaf, old)
    expected.backward()
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(grad, leaf.grad, atol=1e-6)


def test_the_table_of_papers_says_what_equals_their_formulas():
    rows = re.findall(r"^    (\S.*?)\s+\d{4}\.\d{5}\s+(\w+)\s+(\w+)\s+(\w+)", losses.__doc__, re.MULTILINE)
    assert [name for name, *_ in rows] == ["GRPO", "DAPO", "Dr. GRPO", "GSPO", "CISPO", "RLOO"]
    for name, loss, advantage, aggregation in rows:
        assert (loss, aggregation) == (PAPERS[name]["loss"], PAPERS[name]["aggregation"])
        assert advantage in ADVANTAGES


def test_clip_fractions_count_what_the_clip_changes(case, config):
    rows, logprobs, old = case
    _, below, above = LOSSES["grpo"](logprobs, old, rows, config.algorithm)
    ratio, trained = np.exp(logprobs - old), rows.mask > 0
    assert (np.asarray(below)[trained] == ((ratio < 0.8) & (rows.advantages < 0))[trained]).all()
    assert (np.asarray(above)[trained] == ((ratio > 1.28) & (rows.advantages > 0))[trained]).all()
    assert below[trained].any()
    assert above[trained].any()


def test_segment_sums_keep_rows_and_segments_apart(case):
    rows, values, _ = case
    found = segment_sums(jnp.asarray(values), rows.segment_ids)
    for row in range(len(LENGTHS)):
        for segment in np.unique(rows.segment_ids[row]):
            where = rows.segment_ids[row] == segment
            np.testing.assert_allclose(found[row, where], values[row, where].sum(), rtol=1e-5)


def test_k3_is_an_unbiased_and_non_negative_estimate_of_the_kl():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    found = np.asarray(k3(jnp.asarray(np.log(q / p))))
    assert (found >= 0).all()
    assert (p * found).sum() == pytest.approx((p * np.log(p / q)).sum(), rel=1e-4)


def sequences_of(rows):
    """Row, places of the trained tokens, and advantage of every sequence."""
    for row, lengths in enumerate(LENGTHS):
        for segment in range(1, len(lengths) + 1):
            where = np.flatnonzero((rows.segment_ids[row] == segment) & (rows.mask[row] > 0))
            yield row, where, float(rows.advantages[row, where[0]])


def drift(name, logprobs, sampled):
    """The mean over a sequence that the config key bounds."""
    return np.abs(logprobs - sampled).mean() if name == "mask_drifted" else (sampled - logprobs).mean()


@pytest.mark.parametrize("name", SEQUENCE_MASKS)
def test_sequences_beyond_the_bound_are_left_out_of_sum_and_gradient(name, case, config):
    """And stay in the denominator. The bound lies between the sequences that the mask is for."""
    rows, logprobs, old = case
    rows = rows._replace(advantages=np.where(np.arange(3)[:, None] == 1, 1, -1) * np.abs(rows.advantages))
    shifted = logprobs + np.linspace(-0.3, 0.3, 20, dtype=np.float32)
    config.algorithm.old_logprobs = "recorded"
    concerned = [s for s in sequences_of(rows) if name == "mask_drifted" or s[2] < 0]
    bound = float(np.median([drift(name, shifted[row, where], old[row, where]) for row, where, _ in concerned]))
    expected, kept_tokens = 0.0, 0
    leaf = torch.tensor(shifted, dtype=torch.float64, requires_grad=True)
    for row, where, advantage in sequences_of(rows):
        out = drift(name, shifted[row, where], old[row, where]) > bound
        if out and (name == "mask_drifted" or advantage < 0):
            continue
        ratio = torch.exp(leaf[row, where] - torch.tensor(old[row, where]))
        expected = expected - torch.minimum(ratio * advantage, torch.clamp(ratio, 0.8, 1.28) * advantage).sum()
        kept_tokens += len(where)
    expected.backward()
    config.algorithm[name] = bound
    (value, (sums, _)), grad = jax.value_and_grad(
        lambda x: batch_loss(x, jnp.zeros_like(x), rows, config, 0.0), has_aux=True
    )(jnp.asarray(shifted))
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(grad, leaf.grad, atol=1e-6)
    assert 0 < kept_tokens < sums["tokens"] == rows.mask.sum()
    assert float(sums[name]) == rows.mask.sum() - kept_tokens


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_the_bonus_is_the_weighted_entropy_of_the_trained_tokens(aggregation, case, config):
    rows, logprobs, _ = case
    entropy = np.random.default_rng(1).random(logprobs.shape).astype(np.float32)
    config.algorithm.aggregation = aggregation

    def total(entropy, weight):
        return batch_loss(logprobs, entropy, rows, config, weight)[0]

    without, gradient = jax.value_and_grad(total)(entropy, 0.3)
    assert not gradient.any()  # where the config has no bonus, a weight counts for nothing
    config.algorithm.entropy = 0.1
    found, gradient = jax.value_and_grad(total)(entropy, 0.3)
    expected = np.zeros_like(entropy)
    for row, where, _ in sequences_of(rows):
        expected[row, where] = 0.3 / (len(where) if aggregation == "sequence" else 1)
    assert float(without - found) == pytest.approx((expected * entropy).sum(), rel=1e-4)
    np.testing.assert_allclose(gradient, -expected, rtol=1e-5)


def test_the_coefficient_follows_the_published_rule(config):
    """Skywork-OR1: a step up below the target, down above it, at least 0, and no bonus while above the target."""
    config.algorithm.update(dict(entropy=0.01, entropy_target=0.2, entropy_step=0.004))
    coefficient, entropy, slow = None, None, 0.01
    for measured in (0.1, 0.15, 0.25, 0.19, *[0.3] * 6, 0.2, 0.1):
        assert entropy_weight(coefficient, entropy, config.algorithm) == (0 if (entropy or 0) > 0.2 else slow)
        coefficient, entropy = next_entropy_coefficient(coefficient, measured, config.algorithm), measured
        slow = max(slow + (0.004 if measured < 0.2 else -0.004 if measured > 0.2 else 0.0), 0.0)
        assert coefficient == pytest.approx(slow)
        slow = coefficient
    config.algorithm.entropy_target = 0.0
    assert entropy_weight(coefficient, entropy, config.algorithm) == 0.01  # of a stage without a target


def clip_case():
    rng = np.random.default_rng(0)
    return [
        Sequence(
            tokens=rng.integers(0, 9, n).astype(np.int32),
            mask=(np.arange(n) >= n // 3).astype(np.float32),
            advantage=float(rng.normal(scale=2)),
            behaviour_logprobs=-rng.exponential(size=n).astype(np.float32),
        )
        for n in rng.integers(3, 30, 40)
    ]


def test_clipped_tokens_are_drawn_from_those_of_covariances_between_the_bounds(config):
    config.algorithm.update(dict(covariance_clip=0.05, covariance_bounds=(1.0, 3.0)))
    sequences = clip_case()
    trained = [(s, t) for s in sequences for t in np.flatnonzero(s.mask)]
    logp, advantage = np.array([(s.behaviour_logprobs[t], s.advantage) for s, t in trained], np.float64).T
    covariance = (logp - logp.mean()) * (advantage - advantage.mean())
    between = {(id(s.tokens), t) for (s, t), c in zip(trained, covariance, strict=True) if 1 < c < 3}
    draws = []
    for seed in range(3):
        clipped, share = covariance_clip(sequences, config.algorithm, seed)
        drawn = {(id(s.tokens), t) for s in clipped for t in np.flatnonzero(s.clipped)}
        assert drawn <= between
        assert len(drawn) == int(0.05 * len(trained)) == round(share * len(trained)) < len(between)
        draws.append(drawn)
    assert draws[0] != draws[1] != draws[2]
    assert [s.clipped.tolist() for s in covariance_clip(sequences, config.algorithm, 2)[0]] == [
        s.clipped.tolist() for s in clipped
    ]


@pytest.mark.parametrize(("share", "bounds"), [(0.9, (1.0, 3.0)), (1e-6, (1.0, 3.0)), (0.5, (1e6, 1e7))])
def test_no_more_tokens_are_clipped_than_there_are_and_at_least_one(share, bounds, config):
    config.algorithm.update(dict(covariance_clip=share, covariance_bounds=bounds))
    sequences = clip_case()
    clipped, found = covariance_clip(sequences, config.algorithm, 0)
    count = sum(int(s.clipped.sum()) for s in clipped)
    assert found == count / sum(int(s.mask.sum()) for s in sequences)
    assert (count > 1, count == 1, count == 0) == (share == 0.9, share == 1e-6, share == 0.5)


def test_clipped_tokens_have_no_advantage_and_all_else_stays(config):
    config.algorithm.covariance_clip = 0.05
    config.updates.row_lengths = (64,)
    sequences = clip_case()
    clipped, share = covariance_clip(sequences, config.algorithm, 0)
    (before, _), (after, _) = (pack(s, config.updates) for s in (sequences, clipped))
    zeroed = 0
    for x, y in zip(before, after, strict=True):
        changed = x.advantages != y.advantages
        assert not y.advantages[changed].any()
        zeroed += changed.sum()
        rest = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and a is not x.advantages]
        assert all((a == b).all() for a, b in rest)
    assert zeroed == round(share * sum(s.mask[1:].sum() for s in sequences))
