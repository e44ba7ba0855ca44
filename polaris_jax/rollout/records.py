"""What the engine hands out: rollouts, with more fields where `Sampling` asks for them, and its progress."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from polaris_jax.rollout.sampling import Drawn
from polaris_jax.sharding.multihost import gather_bytes
from polaris_jax.types import Rollout

ARRAYS = ("prompt_tokens", "tokens", "logprobs", "untempered_logprobs", "alternative_ids", "alternative_logprobs")


@dataclass(frozen=True)
class ScoredRollout(Rollout):
    """A rollout with the records that `Sampling` can ask for; None where it did not.

    untempered_logprobs: float32 [response], nats, at temperature 1 without top-k and top-p.
    alternative_ids, alternative_logprobs: int32 and float32 [response, n], the most probable tokens at each position.
    """

    untempered_logprobs: np.ndarray | None = None
    alternative_ids: np.ndarray | None = None
    alternative_logprobs: np.ndarray | None = None


@dataclass(frozen=True)
class Progress:
    """What `generate` reports between device calls. Counts are rollouts of this process.

    occupancy: share of the decoded rows that gave a token. preempted: how often so far. longest: tokens, so far.
    """

    finished: int
    total: int
    tokens_per_s: float
    occupancy: float
    running: int
    waiting: int
    preempted: int
    longest: int


@dataclass(eq=False)
class Response:
    """A response on its way. key: uint32 [2]. prompt: int32 [prompt]. parts: of each device call, [tokens, ...]."""

    problem_id: str
    sample: int
    key: np.ndarray
    prompt: np.ndarray
    parts: list[Drawn] = field(default_factory=list)
    finish_reason: str = ""

    @property
    def tokens(self) -> np.ndarray:
        """int32 [response so far]."""
        return np.concatenate([part.tokens for part in self.parts]) if self.parts else np.zeros(0, np.int32)

    @property
    def newest(self) -> int:
        """The token the next decoding step reads."""
        return int(self.parts[-1].tokens[-1] if self.parts else self.prompt[-1])

    def rollout(self) -> Rollout:
        """The finished response."""
        drawn: Drawn = jax.tree.map(lambda *parts: np.concatenate(parts), *self.parts)
        fields = (self.problem_id, self.sample, self.prompt, drawn.tokens, drawn.logprobs, self.finish_reason)
        if drawn.untempered is None and drawn.alternatives is None:
            return Rollout(*fields)
        return ScoredRollout(*fields, drawn.untempered, *(drawn.alternatives or (None, None)))


def rollouts_of_others(mine: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts of the other processes. Every process calls it once, with its own."""
    everyone = gather_bytes(to_bytes(mine))
    others = everyone[: jax.process_index()] + everyone[jax.process_index() + 1 :]
    return [rollout for data in others for rollout in from_bytes(data)]


def to_bytes(rollouts: Sequence[Rollout]) -> bytes:
    """The rollouts as an npz file."""
    buffer, arrays, heads = io.BytesIO(), {}, []
    for i, rollout in enumerate(rollouts):
        heads.append((rollout.problem_id, rollout.sample, rollout.finish_reason))
        found = {name: getattr(rollout, name, None) for name in ARRAYS}
        arrays |= {f"{i}.{name}": array for name, array in found.items() if array is not None}
    np.savez(buffer, heads=np.frombuffer(json.dumps(heads).encode(), np.uint8), **arrays)
    return buffer.getvalue()


def from_bytes(data: bytes) -> list[Rollout]:
    """The rollouts of `to_bytes`, to the bit."""
    rollouts = []
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        for i, (problem_id, sample, reason) in enumerate(json.loads(file["heads"].tobytes())):
            fields = {name: file[f"{i}.{name}"] for name in ARRAYS if f"{i}.{name}" in file}
            kind = Rollout if len(fields) == 3 else ScoredRollout
            rollouts.append(kind(problem_id=problem_id, sample=sample, finish_reason=reason, **fields))
    return rollouts
