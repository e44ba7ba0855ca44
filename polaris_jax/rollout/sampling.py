"""How the next token is drawn from logits: temperature, top-k, top-p, and randomness that has an address."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Sampling:
    """What to sample and what to record.

    temperature: logits are divided by it; 0 is greedy, and then the recorded log-probs are those at temperature 1.
    top_p, top_k: keep the most probable tokens that together reach top_p, of the top_k; 1.0 and 0 keep all.
    max_response_tokens: the token limit of each response, the stop token and the forced prefix included.
    stop_ids: tokens that end a response.
    prefix: token ids every response starts with, such as those of "<think>\\n". Their recorded log-probs are the
        model's at this temperature, before top-k and top-p.
    untempered: record each token's log-prob at temperature 1 without top-k and top-p, too.
    alternatives: how many of the most probable tokens to record at each position, with their log-probs.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_response_tokens: int = 4096
    stop_ids: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    untempered: bool = False
    alternatives: int = 0

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature}: must be 0 (greedy) or positive")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: must be in (0, 1]")
        if self.top_k < 0 or self.alternatives < 0:
            raise ValueError(f"top_k {self.top_k} and alternatives {self.alternatives}: must be 0 (off) or positive")
        if len(self.prefix) >= self.max_response_tokens:
            raise ValueError(
                f"max_response_tokens {self.max_response_tokens}: must exceed the forced prefix of {len(self.prefix)}"
            )


class Numbers(NamedTuple):
    """The numbers of a `Sampling`, which are arguments of the programs, so that another value is no other program.

    stop_ids: int32 [n], [-1] for none. temperature, top_p: float32 []. prefix: int32 [n].
    """

    stop_ids: Any
    temperature: Any
    top_p: Any
    prefix: Any


def split(sampling: Sampling) -> tuple[Sampling, Numbers]:
    """What of it decides the program, the same for all values of the numbers; and the numbers."""
    static = replace(
        sampling,
        temperature=float(sampling.temperature > 0),
        top_p=1.0 if sampling.top_p == 1 else 0.5,
        max_response_tokens=len(sampling.prefix) + 1,
        stop_ids=(),
        prefix=(0,) * len(sampling.prefix),
    )
    stop_ids, prefix = (np.asarray(ids, np.int32) for ids in (sampling.stop_ids or (-1,), sampling.prefix))
    return static, Numbers(stop_ids, np.float32(sampling.temperature), np.float32(sampling.top_p), prefix)


class Drawn(NamedTuple):
    """tokens: int32 [B]. logprobs: float32 [B], nats. The rest is None unless asked for.

    untempered: float32 [B], nats. alternatives: int32 [B, n] and float32 [B, n], most probable first.
    """

    tokens: jax.Array
    logprobs: jax.Array
    untempered: jax.Array | None
    alternatives: tuple[jax.Array, jax.Array] | None


def sequence_key(seed: int, problem_id: str, sample: int) -> np.ndarray:
    """The address of a response's randomness, uint32 [2]: the same on every machine and in every run."""
    digest = hashlib.blake2b(f"{seed}/{sample}/{problem_id}".encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u4").astype(np.uint32)


def only_known(logits_BV: jax.Array, known: int) -> jax.Array:
    """Logits with -inf for ids from `known` on, `ModelConfig.known_tokens`; 0: as they are."""
    return jnp.where(jnp.arange(logits_BV.shape[-1]) < known, logits_BV, -jnp.inf) if known else logits_BV


def truncate(logits_BV: jax.Array, top_k: int, top_p: float | jax.Array | None) -> jax.Array:
    """Logits with -inf for what top-k (0: off), and then top-p (None: off), leave out; ties with the last are kept."""
    if not top_k and top_p is None:
        return logits_BV
    k = min(top_k or logits_BV.shape[-1], logits_BV.shape[-1])
    best_Bk = jax.lax.top_k(logits_BV, k)[0]
    threshold_B = best_Bk[:, -1]
    if top_p is not None:
        probs_Bk = jax.nn.softmax(best_Bk, axis=-1)
        before_Bk = jnp.cumsum(probs_Bk, axis=-1) - probs_Bk  # probability of everything more probable
        threshold_B = jnp.min(jnp.where(before_Bk < top_p, best_Bk, jnp.inf), axis=-1)
    return jnp.where(logits_BV >= threshold_B[:, None], logits_BV, -jnp.inf)


def gumbels(keys_B2: jax.Array, positions_B: jax.Array, vocabulary: int) -> jax.Array:
    """The randomness of one draw for each sequence, float32 [B, N + b]: threefry keyed by fold_in(key, position).

    N and b are those of `draw`. keys: uint32 [B, 2], of `sequence_key`. positions: int32 [B], in the response.
    vocabulary: V.
    """
    keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys_B2, impl="threefry2x32"), positions_B)
    return jax.vmap(lambda key: jax.random.gumbel(key, (sum(_blocks(vocabulary)),)))(keys_B)


def _blocks(vocabulary: int) -> tuple[int, int]:
    """Number N of blocks, and tokens b of a block."""
    b = 1 << math.ceil(math.log2(vocabulary) / 2)
    return -(-vocabulary // b), b


def draw(logits_BV: jax.Array, gumbel_Bg: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Samples from softmax(logits); also returns logsumexp(logits), float32 [B].

    logits: float32 [B, V]. gumbel: float32 [B, N + b], of `gumbels`.

    Gumbel-max in two steps, so that a draw costs about 2 sqrt(V) Gumbels in place of V: the vocabulary is cut into
    N blocks of b tokens; argmax(logsumexp of the block + Gumbel) picks a block with its probability, argmax(logit +
    Gumbel) within it a token with its conditional probability.
    """
    B, V = logits_BV.shape
    N, b = _blocks(V)
    logits_BNb = jnp.pad(logits_BV, ((0, 0), (0, N * b - V)), constant_values=-jnp.inf).reshape(B, N, b)
    top_B = jnp.max(logits_BV, axis=-1)
    mass_BN = jnp.sum(jnp.exp(logits_BNb - top_B[:, None, None]), axis=-1)
    block_B = jnp.argmax(jnp.log(mass_BN) + gumbel_Bg[:, :N], axis=-1)
    within_Bb = jnp.take_along_axis(logits_BNb, block_B[:, None, None], axis=1)[:, 0]
    token_B = block_B * b + jnp.argmax(within_Bb + gumbel_Bg[:, N:], axis=-1)
    return token_B.astype(jnp.int32), top_B + jnp.log(jnp.sum(mass_BN, axis=-1))


def next_token(
    logits_BV: jax.Array, gumbel_Bg: jax.Array, positions_B: jax.Array, sampling: Sampling, numbers: Numbers
) -> Drawn:
    """One token for each sequence. logits: float32 [B, V], of the model. gumbel: of `gumbels` at these positions.

    `sampling` decides what is computed (greedy or not, top-k, whether top-p is on, what is recorded); what it has in
    common with `numbers` is taken from these.
    """

    def pick(logprobs_BV, tokens_B):
        return jnp.take_along_axis(logprobs_BV, tokens_B[:, None], axis=-1)[:, 0]

    if sampling.temperature == 0:
        tempered_BV = logits_BV
        token_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        normaliser_B = jax.nn.logsumexp(logits_BV, axis=-1)
    else:
        tempered_BV = logits_BV / numbers.temperature
        kept_BV = truncate(tempered_BV, sampling.top_k, numbers.top_p if sampling.top_p < 1 else None)
        token_B, normaliser_B = draw(kept_BV, gumbel_Bg)
    logprob_B = pick(tempered_BV, token_B) - normaliser_B
    if sampling.prefix:
        n = len(sampling.prefix)
        forced_B = positions_B < n
        token_B = jnp.where(forced_B, numbers.prefix[jnp.minimum(positions_B, n - 1)], token_B)
        full_B = pick(tempered_BV, token_B) - jax.nn.logsumexp(tempered_BV, axis=-1)
        logprob_B = jnp.where(forced_B, full_B, logprob_B)
    untempered_B = alternatives = None
    if sampling.untempered:
        untempered_B = pick(logits_BV, token_B) - jax.nn.logsumexp(logits_BV, axis=-1)
    if sampling.alternatives:
        best_Bn, ids_Bn = jax.lax.top_k(tempered_BV, sampling.alternatives)
        alternatives = (ids_Bn, best_Bn - jax.nn.logsumexp(tempered_BV, axis=-1, keepdims=True))
    return Drawn(token_B, logprob_B, untempered_B, alternatives)
