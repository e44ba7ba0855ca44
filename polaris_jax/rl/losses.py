"""Policy losses with one signature, the paper of each, and how token losses are weighted and summed.

A loss is `loss(logprobs_RT, old_logprobs_RT, rows, algorithm) -> (loss_RT, below_RT, above_RT)`: the loss of every
token, and where the ratio was clipped from below and from above (float32 0 / 1). Only values where `rows.mask` is 1
count. `rows` is a `PackedBatch`; `algorithm` is the section of that name of the config.

    paper                       loss    advantage  aggregation  clip
    GRPO      2402.03300        grpo    group      sequence     equal below and above
    DAPO      2503.14476        grpo    group      token        (0.2, 0.28), soft overlong punishment
    Dr. GRPO  2503.20783        grpo    mean       constant     equal below and above
    GSPO      2507.18071        gspo    group      sequence     (3e-4, 4e-4)
    CISPO     2506.13585        cispo   group      token        (1.0, ...): no lower bound
    RLOO      2402.14740        grpo    rloo       constant     the paper's updates are on-policy: no ratio is clipped
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from polaris_jax.rl import packing
from polaris_jax.types import PackedBatch

QUANTISED_CAP = 2.0  # where the sampler's weights are quantised and the config sets no cap
MAX_LOG_RATIO = 20.0  # e^20: far beyond every clip, and still finite in float32


def grpo_loss(logprobs_RT, old_logprobs_RT, rows: PackedBatch, algorithm: ConfigDict):
    """-min(r A, clip(r, 1 - below, 1 + above) A) per token; GRPO, with DAPO's clip-higher (2503.14476, equation 8).

    `algorithm.dual_clip` c > 0 bounds the loss of negative advantages at -c A (1912.09729, equation 2).
    """
    return _clipped(_ratio(logprobs_RT - old_logprobs_RT), rows.advantages, algorithm)


def gspo_loss(logprobs_RT, old_logprobs_RT, rows: PackedBatch, algorithm: ConfigDict):
    """The clipped loss of the sequence's ratio, the geometric mean of its tokens' (2507.18071, equations 5 to 7).

    Every token of a sequence has the same value, so that the mean over the sequence is the paper's loss.
    """
    return _clipped(_ratio(segment_means(logprobs_RT - old_logprobs_RT, rows)), rows.advantages, algorithm)


def cispo_loss(logprobs_RT, old_logprobs_RT, rows: PackedBatch, algorithm: ConfigDict):
    """-stop_gradient(clip(r, 1 - below, 1 + above)) A log p: clipped tokens keep a gradient (2506.13585, eq. 4, 5)."""
    ratio_RT = jax.lax.stop_gradient(_ratio(logprobs_RT - old_logprobs_RT))
    below, above = algorithm.clip
    clipped_RT = jnp.clip(ratio_RT, 1 - below, 1 + above)
    return -clipped_RT * rows.advantages * logprobs_RT, _f32(ratio_RT < 1 - below), _f32(ratio_RT > 1 + above)


def sft_loss(logprobs_RT, old_logprobs_RT, rows: PackedBatch, algorithm: ConfigDict):
    """-log p of the token: supervised fine-tuning. The advantages are not looked at."""
    del old_logprobs_RT, algorithm
    nowhere_RT = jnp.zeros_like(logprobs_RT)
    return -logprobs_RT, nowhere_RT, nowhere_RT


LOSSES: dict[str, Callable] = {"grpo": grpo_loss, "gspo": gspo_loss, "cispo": cispo_loss, "sft": sft_loss}


def _f32(condition):
    return condition.astype(jnp.float32)


def _ratio(log_ratio):
    return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _clipped(ratio_RT, advantages_RT, algorithm):
    below, above = algorithm.clip
    plain_RT = -ratio_RT * advantages_RT
    loss_RT = jnp.maximum(plain_RT, -jnp.clip(ratio_RT, 1 - below, 1 + above) * advantages_RT)
    if algorithm.dual_clip:
        loss_RT = jnp.where(advantages_RT < 0, jnp.minimum(loss_RT, -algorithm.dual_clip * advantages_RT), loss_RT)
    return (
        loss_RT,
        _f32((ratio_RT < 1 - below) & (advantages_RT < 0)),
        _f32((ratio_RT > 1 + above) & (advantages_RT > 0)),
    )


def k3(log_ratio):
    """exp(x) - x - 1, for x = log q/p on samples of p an unbiased, non-negative estimate of KL(p, q).

    Schulman, "Approximating KL divergence", 2020, and GRPO (2402.03300, equation 4) with q the reference.
    """
    return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)) - log_ratio - 1


def segment_sums(values_RT: jax.Array, segment_ids_RT: jax.Array) -> jax.Array:
    """At each place the sum of `values_RT` over its row's places of the same segment; float32 [R, T]."""
    R, T = values_RT.shape
    numbers_RT = segment_ids_RT + jnp.arange(R)[:, None] * (T + 1)
    sums_N = jax.ops.segment_sum(values_RT.reshape(-1), numbers_RT.reshape(-1), num_segments=R * (T + 1))
    return sums_N[numbers_RT]


def segment_means(values_RT: jax.Array, rows: PackedBatch) -> jax.Array:
    """At each place the mean of `values_RT` over the trained tokens of its sequence; float32 [R, T]."""
    tokens_RT = jnp.maximum(segment_sums(rows.mask, rows.segment_ids), 1)
    return segment_sums(values_RT * rows.mask, rows.segment_ids) / tokens_RT


def drifted(logprobs_RT: jax.Array, rows: PackedBatch, bound: float) -> jax.Array:
    """Tokens of sequences whose mean |log p - log p_sampler| is over `bound`, bool [R, T].

    A ratio that is the same for long and short sequences, as GSPO's (2507.18071); verl's rollout correction rejects
    sequences by it (documentation, "rollout_rs", of the log-ratio's mean). It finds what is stale as well as what
    sampler and trainer see differently.
    """
    return segment_means(jnp.abs(logprobs_RT - rows.behaviour_logprobs), rows) > bound


def drifted_negative(logprobs_RT: jax.Array, rows: PackedBatch, bound: float) -> jax.Array:
    """Tokens of sequences of negative advantage whose mean log(p_sampler / p) is over `bound`, bool [R, T].

    Off-policy sequence masking: from what the policy would not say any more it can learn little by saying it less
    (DeepSeek-V3.2, 2512.02556, equation 9).
    """
    return (rows.advantages < 0) & (segment_means(rows.behaviour_logprobs - logprobs_RT, rows) > bound)


# By the config key that has the bound; the share of the trained tokens that each leaves out is a metric of that name.
SEQUENCE_MASKS: dict[str, Callable] = {"mask_drifted": drifted, "mask_drifted_negative": drifted_negative}


def batch_loss(
    logprobs_RT: jax.Array, entropy_RT: jax.Array, rows: PackedBatch, config: ConfigDict, entropy_weight: jax.Array
) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """The loss of a batch, summed over its trained tokens, and its totals: (sums, extremes), dicts of scalars.

    logprobs, entropy: float32 [R, T], of the current policy. The ratio's denominator is the recorded log-prob where
    `takes_recorded` or the sequence is off-policy, else the old one of the trainer. entropy_weight: of the bonus for
    each token's entropy, where the config has one. Sequences that are masked lose their part in the policy loss, not
    in what it is divided by. Sums over several batches are added, extremes are maximised; `divisor` says what to
    divide the summed loss by.
    """
    algorithm, trained = config.algorithm, rows.mask > 0
    current = jax.lax.stop_gradient(logprobs_RT)
    old = current if rows.old_logprobs is None else rows.old_logprobs
    old = jnp.where(rows.off_policy | takes_recorded(config), rows.behaviour_logprobs, old)
    loss, below, above = LOSSES[algorithm.loss](logprobs_RT, old, rows, algorithm)
    weights = token_weights(rows, algorithm.aggregation)
    if cap := importance_cap(config):
        weights *= jnp.minimum(jnp.exp(old - rows.behaviour_logprobs), cap)
    sums, extremes = {}, {}
    for name, mask in SEQUENCE_MASKS.items():
        if bound := algorithm[name]:
            out = mask(current, rows, bound)
            loss = jnp.where(out, 0, loss)
            sums[name] = jnp.sum(rows.mask * out)
    if has_entropy_bonus(algorithm):
        loss -= entropy_weight * entropy_RT
    if algorithm.kl:
        loss += algorithm.kl * k3(rows.reference_logprobs - logprobs_RT)
        sums["kl_reference"] = jnp.sum(rows.mask * k3(rows.reference_logprobs - current))
    total = jnp.sum(jnp.where(trained, weights * loss, 0))
    sums |= {
        "tokens": jnp.sum(rows.mask),
        "sequences": jnp.sum(rows.mask / jnp.maximum(segment_sums(rows.mask, rows.segment_ids), 1)),
        "loss": total,
        "entropy": jnp.sum(rows.mask * entropy_RT),
    }
    if algorithm.loss != "sft":  # what a response that was sampled has besides
        gap = jnp.where(trained & ~rows.off_policy, current - rows.behaviour_logprobs, 0)
        ratio = jnp.exp(jnp.where(trained, current - old, 0))
        sums |= {
            "clip_below": jnp.sum(rows.mask * below),
            "clip_above": jnp.sum(rows.mask * above),
            "sampler_trainer_gap": jnp.sum(jnp.abs(gap)),
            "sampler_trainer_kl": jnp.sum(k3(gap)),
        }
        extremes = {
            "ratio_max": jnp.max(ratio),
            "negative_ratio_min": -jnp.min(ratio),
            "sampler_trainer_ratio_max": jnp.exp(jnp.max(jnp.abs(gap))),
        }
    return total, (sums, extremes)


def has_entropy_bonus(algorithm: ConfigDict) -> bool:
    """Whether the loss has a term of the entropy, whose gradient is computed only then."""
    return algorithm.entropy > 0 or algorithm.entropy_target > 0


def entropy_weight(coefficient: float | None, entropy: float | None, algorithm: ConfigDict) -> float:
    """What a step weighs its tokens' entropy with: `algorithm.entropy`, or with a target the controlled coefficient.

    That is used only where the entropy of the update before was not above the target (Skywork-OR1, 2505.22312).
    coefficient, entropy: of `next_entropy_coefficient` and of that update, in nats a token; None before the first.
    """
    if not algorithm.entropy_target or coefficient is None:
        return algorithm.entropy
    return coefficient if entropy <= algorithm.entropy_target else 0.0


def next_entropy_coefficient(coefficient: float | None, entropy: float, algorithm: ConfigDict) -> float:
    """The coefficient after an update of that entropy: a step up below the target, a step down above, never below 0.

    Adaptive entropy control of Skywork-OR1 (2505.22312), which starts from `algorithm.entropy`.
    """
    coefficient = algorithm.entropy if coefficient is None else coefficient
    change = np.sign(algorithm.entropy_target - entropy) * algorithm.entropy_step
    return max(float(coefficient + change), 0.0)


def covariance_clip(
    sequences: Sequence[packing.Sequence], algorithm: ConfigDict, seed: int
) -> tuple[list[packing.Sequence], float]:
    """Clip-Cov (2505.22617): some of the tokens that lower the entropy most lose their policy gradient.

    A token's covariance is (log p - mean log p) (A - mean A), means over all trained tokens of the batch, and p the
    policy that sampled it. Of the tokens between the two `covariance_bounds` the share `covariance_clip` of the
    batch's tokens, and at least one, is drawn; these count as tokens with an advantage of 0. Returns the sequences,
    and the share of the trained tokens that was drawn. Neither depends on how sequences are packed.
    """
    trained = [sequence.mask > 0 for sequence in sequences]
    logprobs_N = np.concatenate([s.behaviour_logprobs[t] for s, t in zip(sequences, trained, strict=True)])
    advantages_N = np.repeat([s.advantage for s in sequences], [t.sum() for t in trained])
    covariances_N = (logprobs_N - logprobs_N.mean(dtype=float)) * (advantages_N - advantages_N.mean())
    low, high = algorithm.covariance_bounds
    between = np.flatnonzero((covariances_N > low) & (covariances_N < high))
    count = min(max(int(algorithm.covariance_clip * len(covariances_N)), 1), len(between))
    drawn_N = np.zeros(len(covariances_N), bool)
    drawn_N[np.random.default_rng(seed).choice(between, count, replace=False)] = True
    parts = np.split(drawn_N, np.cumsum([t.sum() for t in trained])[:-1])
    clipped = [np.zeros(len(t), bool) for t in trained]
    for places, t, part in zip(clipped, trained, parts, strict=True):
        places[t] = part
    sequences = [replace(s, clipped=places) for s, places in zip(sequences, clipped, strict=True)]
    return sequences, count / len(covariances_N)


def merge_totals(a: tuple[dict, dict], b: tuple[dict, dict]) -> tuple[dict, dict]:
    """The totals of two batches together."""
    return jax.tree.map(jnp.add, a[0], b[0]), jax.tree.map(jnp.maximum, a[1], b[1])


def divisor(batches: Sequence[PackedBatch], config: ConfigDict) -> np.float32:
    """What the summed loss of batches is divided by, for all their rows together; at least 1. batches: on the host."""
    tokens = sum(np.count_nonzero(batch.mask) for batch in batches)
    sequences = sum(map(_trained_sequences, batches))
    count = denominator(config.algorithm.aggregation, tokens, sequences, config.rollout.max_response_tokens)
    return np.float32(max(count, 1))


def _trained_sequences(batch: PackedBatch) -> int:
    """How many sequences of a batch on the host have a token to train on."""
    numbers_RT = batch.segment_ids + np.arange(len(batch.mask))[:, None] * (batch.mask.shape[1] + 1)
    return np.count_nonzero(np.bincount(numbers_RT[batch.mask > 0]))


def token_weights(rows: PackedBatch, aggregation: str) -> jax.Array:
    """What each token's loss is multiplied with before the sum, float32 [R, T]; the sum is divided by `denominator`."""
    if aggregation == "sequence":
        return rows.mask / jnp.maximum(segment_sums(rows.mask, rows.segment_ids), 1)
    return rows.mask


def importance_cap(config: ConfigDict) -> float:
    """Cap of the weight p_old / p_sampler of a token's loss (truncated importance sampling); 0: no weight.

    The weight leads from the sampler to the trainer's old policy, and the ratio from there to the current one
    (decoupled, arXiv 2110.00641, section 3.2). A ratio to the recorded log-probs leads the whole way by itself.
    """
    if config.algorithm.loss == "sft" or config.algorithm.old_logprobs == "recorded":
        return 0.0  # nothing was sampled, or there is nothing left to weigh
    return config.algorithm.importance_cap or (QUANTISED_CAP if config.rollout.weights else 0.0)


def takes_recorded(config: ConfigDict) -> bool:
    """Whether ratios are taken to the recorded log-probs: as configured, and where batches are one step old and no
    importance weight makes up for that."""
    return config.algorithm.old_logprobs == "recorded" or (config.rollout.devices > 0 and not importance_cap(config))


def denominator(aggregation: str, tokens, sequences, max_response_tokens: int):
    """What the summed loss of the whole batch is divided by, once.

    tokens, sequences: trained tokens of the batch, and sequences that have any. "token": tokens (DAPO). "sequence":
    sequences (GRPO). "constant": sequences times `max_response_tokens`, the same whatever was sampled (Dr. GRPO).
    """
    return {"token": tokens, "sequence": sequences, "constant": sequences * max_response_tokens}[aggregation]
