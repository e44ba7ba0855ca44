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

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

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
    log_ratio_RT = (logprobs_RT - old_logprobs_RT) * rows.mask
    tokens_RT = jnp.maximum(segment_sums(rows.mask, rows.segment_ids), 1)
    mean_RT = segment_sums(log_ratio_RT, rows.segment_ids) / tokens_RT
    return _clipped(_ratio(mean_RT), rows.advantages, algorithm)


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


def batch_loss(
    logprobs_RT: jax.Array, entropy_RT: jax.Array, rows: PackedBatch, config: ConfigDict
) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """The loss of a batch, summed over its trained tokens, and its totals: (sums, extremes), dicts of scalars.

    logprobs, entropy: float32 [R, T], of the current policy. The ratio's denominator is the recorded log-prob where
    `takes_recorded` or the sequence is off-policy, else the old one of the trainer. Sums over several batches are
    added, extremes are maximised; `divisor` says what to divide the summed loss by.
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
