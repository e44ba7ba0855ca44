"""Every loss equals a slow torch version written from its paper's formula, in value and gradient, on ragged groups."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.rl import losses
from polaris_jax.rl.advantages import ADVANTAGES
from polaris_jax.rl.losses import LOSSES, denominator, k3, segment_sums, token_weights
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
