"""The records that travel between the modules: plain Python and numpy; only `PackedBatch` goes to devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the workers that judge responses have problems too, but no use for numpy
    import numpy as np


@dataclass(frozen=True)
class Problem:
    """A question with a verifiable answer.

    id: stable name of the problem, the same in every run (a hash of the question, or the dataset's own).
    question: what the user asks, the recipe's suffix included, before the chat template.
    answers: one or more ground truths, each of which is right.
    source: the dataset it came from.
    accuracy: share of correct rollouts when last measured, in [0, 1], or None.
    kind: how an answer is judged, one of `rewards.kinds.KINDS`: "math", "choice", "exact" or "reasoning_gym".
    metadata: what the scorer of such a kind needs beside the answers, as JSON; "" where it needs nothing.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    source: str = ""
    accuracy: float | None = None
    kind: str = "math"
    metadata: str = ""


def problem_from_json(saved: Mapping[str, Any]) -> Problem:
    """The problem of `dataclasses.asdict(problem)`, whose answers JSON has made a list of."""
    return Problem(**{**saved, "answers": tuple(saved["answers"])})


@dataclass(frozen=True)
class Prompt:
    """What the rollout engine continues: a problem, whose id addresses the randomness of its rollouts, and its tokens.

    tokens: int32 [prompt], chat template applied.
    """

    problem: Problem
    tokens: np.ndarray


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    problem_id, sample: address: which problem, which of its samples (0-based).
    prompt_tokens: int32 [prompt].
    tokens: int32 [response], the stop token included when there was one.
    logprobs: float32 [response], nats, of the distribution each token was sampled from (temperature, top-k, top-p).
    finish_reason: "stop" (a stop token was sampled) or "length" (the token limit was reached).
    """

    problem_id: str
    sample: int
    prompt_tokens: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    finish_reason: str


@dataclass(frozen=True)
class Group:
    """All rollouts of one visit to one problem.

    rewards: float32 [samples], what advantages are made of: the weighted sum of `config.reward.functions`.
    correct: bool [samples], whether the answer is right: what pass rates, the curriculum, the rescue and "mixed" go by.
    Both belong to the rollouts in their order.
    """

    problem: Problem
    rollouts: tuple[Rollout, ...]
    rewards: np.ndarray
    correct: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of rollouts that are right."""
        return float(self.correct.mean())

    def replace(self, **changes: Any) -> Group:
        """A copy with some fields changed."""
        return replace(self, **changes)


class Solution(NamedTuple):
    """A right response that is kept for a rescue, and the reward that it earned when it was sampled."""

    rollout: Rollout
    reward: float


class PackedBatch(NamedTuple):
    """Sequences packed into rows, on the host as numpy or on devices as jax arrays; every field is [R, T].

    A sequence of n tokens takes n - 1 places of a row: place t reads `tokens` and predicts `targets`, the sequence's
    next token. All per-token fields belong to the target.

    tokens: int32. targets: int32. positions: int32, restarting at 0 for each sequence.
    segment_ids: int32, 1, 2, ... within a row; 0 is padding.
    mask: float32, 1 where the target is trained on (a response token).
    advantages: float32, the sequence's advantage on each of its trained targets; 0 on those that are clipped.
    behaviour_logprobs: float32, nats: the sampler's log-prob of the target.
    off_policy: bool, whether the current policy did not sample the sequence, so that its ratio is taken to
        `behaviour_logprobs`.
    old_logprobs: float32, nats: the trainer's log-probs before the first of several updates on the batch; None where
        there is one update, for which they are the current ones.
    reference_logprobs: float32, nats: those of the reference model; None without a KL term.
    """

    tokens: Any
    targets: Any
    positions: Any
    segment_ids: Any
    mask: Any
    advantages: Any
    behaviour_logprobs: Any
    off_policy: Any
    old_logprobs: Any = None
    reference_logprobs: Any = None
