"""What the engine hands out: rollouts, with more fields where `Sampling` asks for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import numpy as np

from polaris_jax.rollout.sampling import Drawn
from polaris_jax.types import Rollout


@dataclass(frozen=True)
class DetailedRollout(Rollout):
    """A rollout with the records that `Sampling` can ask for; None where it did not.

    untempered_logprobs: float32 [response], nats, at temperature 1 without top-k and top-p.
    alternative_ids, alternative_logprobs: int32 and float32 [response, n], the most probable tokens at each position.
    """

    untempered_logprobs: np.ndarray | None = None
    alternative_ids: np.ndarray | None = None
    alternative_logprobs: np.ndarray | None = None


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
        return DetailedRollout(*fields, drawn.untempered, *(drawn.alternatives or (None, None)))
