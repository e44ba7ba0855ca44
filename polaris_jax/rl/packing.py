"""Sequences of many lengths packed into rows of a few fixed lengths, without cutting or dropping any."""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from polaris_jax.types import Group, PackedBatch


@dataclass(frozen=True)
class Sequence:
    """One training sequence of n tokens.

    tokens: int32 [n], n >= 2. mask: float32 [n], 1 where the token is trained on; the first token cannot be.
    advantage: of the whole sequence. behaviour_logprobs: float32 [n], nats, the sampler's log-prob of each token (0
    where it sampled none). off_policy: the ratio is taken to the recorded `behaviour_logprobs` even where the rest of
    the batch is on-policy, as for a response from an earlier visit. clipped: bool [n], tokens whose advantage counts
    as 0; None: none of them.
    """

    tokens: np.ndarray
    mask: np.ndarray
    advantage: float = 1.0
    behaviour_logprobs: np.ndarray | None = None
    off_policy: bool = False
    clipped: np.ndarray | None = None


def from_rollouts(
    groups: Iterable[Group],
    advantages_NG: np.ndarray,
    off_policy: frozenset[tuple[int, int]] = frozenset(),
    *,
    truncated: bool = True,
) -> list[Sequence]:
    """One `Sequence` per rollout: the prompt, then the response, which is what is trained on.

    advantages_NG: float32 [groups, samples]. off_policy: (group, sample) of the rollouts the current policy did not
    sample. truncated: whether responses that were truncated at the limit are among them. An empty response raises
    ValueError: there is nothing to train on.
    """
    sequences = []
    for n, (group, advantages) in enumerate(zip(groups, advantages_NG, strict=True)):
        for g, (rollout, advantage) in enumerate(zip(group.rollouts, advantages, strict=True)):
            if rollout.finish_reason == "length" and not truncated:
                continue
            prompt = len(rollout.prompt_tokens)
            if not prompt or not len(rollout.tokens):
                raise ValueError(f"problem {rollout.problem_id} sample {rollout.sample}: empty prompt or response")
            tokens = np.concatenate([rollout.prompt_tokens, rollout.tokens]).astype(np.int32)
            mask = np.zeros(len(tokens), np.float32)
            mask[prompt:] = 1
            logprobs = np.zeros(len(tokens), np.float32)
            logprobs[prompt:] = rollout.logprobs
            sequences.append(Sequence(tokens, mask, float(advantage), logprobs, (n, g) in off_policy))
    return sequences


def pack(
    sequences: Seq[Sequence], updates: ConfigDict, *, groups: int = 1, alone: bool = False
) -> tuple[list[PackedBatch], dict[str, float]]:
    """Packs by first-fit-decreasing into batches of [rows, row length], and tells how full they are.

    updates: that section of the config. `row_lengths`: the lengths a row may have (a sequence of n tokens takes n - 1
    places of it); a sequence goes to the shortest that holds it, or to the free end of a longer row. `rows`: of a
    batch, see `rows_of`; the last ones of a length may have a quarter of that.
    `minibatches`: sequences are assigned in turn to this many parts, and the list returned splits into that many equal
    runs, one a part (made equal with batches of padding, which are neither run nor counted).
    groups: of devices that the rows are split over, `row_groups` of the mesh; a batch's rows are a multiple of that.
    alone: each sequence has a row of its own, see `ops.attention.alone_in_rows`.

    Returns the batches, all sequences in them whole, and "packing_efficiency": real tokens over places, padded rows
    included. Raises ValueError for a sequence longer than every row, or of fewer than two tokens.
    """
    lengths = sorted(updates.row_lengths)
    parts = []
    for part in range(updates.minibatches):
        batches = []
        for length, bins in _fill(sequences[part :: updates.minibatches], lengths, alone).items():
            split = _split(bins, rows_of(updates, length, groups), groups)
            batches += [_batch(chunk, rows, length) for chunk, rows in split]
        parts.append(batches)
    used = sum(len(sequence.tokens) - 1 for sequence in sequences)
    places = sum(batch.tokens.size for batches in parts for batch in batches)
    longest, empty = max(map(len, parts)), _batch([], groups, lengths[0])
    batches = [batch for batches in parts for batch in batches + [empty] * (longest - len(batches))]
    return batches, {"packing_efficiency": used / max(places, 1)}


def rows_of(updates: ConfigDict, length: int, groups: int) -> int:
    """Rows of a full batch: of the greatest length `updates.rows`, or the next multiple of `groups`, and where that is
    0 a row for each group; of length n that, times how often n fits in the greatest."""
    return math.ceil((updates.rows or groups) / groups) * groups * (max(updates.row_lengths) // length)


def _split(bins: list, rows: int, groups: int) -> list[tuple[list, int]]:
    """Parts, and how many rows the batch of each has: `rows` of a full one, and about a quarter of that for the rest.

    Two shapes to compile, both multiples of `groups`, and never more padding than the smaller one less a row.
    """
    small = max(rows // 4 // groups, 1) * groups
    parts, start = [], 0
    while (left := len(bins) - start) > 0:
        size = rows if left > rows - small else small
        parts.append((bins[start : start + size], size))
        start += size
    return parts


def _fill(sequences: Seq[Sequence], lengths: Seq[int], alone: bool) -> dict[int, list[list[Sequence]]]:
    """First-fit-decreasing: for each row length in use the rows, each a list of sequences that fit in it."""
    bins: dict[int, list[list[Sequence]]] = {length: [] for length in lengths}
    free: dict[int, list[int]] = {length: [] for length in lengths}
    for sequence in sorted(sequences, key=lambda sequence: -len(sequence.tokens)):
        size = len(sequence.tokens) - 1
        length = next((length for length in lengths if length >= size), None)
        if size < 1 or length is None:
            raise ValueError(
                f"a sequence of {size + 1} tokens: rows hold 2 to {lengths[-1] + 1}; see updates.row_lengths"
            )
        # The free end of a longer row costs nothing more, so those are tried first.
        for longer in reversed([other for other in lengths if other >= length]):
            row = next((row for row, room in enumerate(free[longer]) if room >= size), None)
            if row is not None:
                bins[longer][row].append(sequence)
                free[longer][row] -= size
                break
        else:
            bins[length].append([sequence])
            free[length].append(0 if alone else length - size)
    return {length: rows for length, rows in bins.items() if rows}


def _batch(bins: Seq[Seq[Sequence]], rows: int, length: int) -> PackedBatch:
    """One PackedBatch [rows, length]; rows without sequences are padding."""
    integers, floats = np.zeros((4, rows, length), np.int32), np.zeros((3, rows, length), np.float32)
    tokens, targets, positions, segment_ids = integers
    mask, advantages, behaviour_logprobs = floats
    off_policy = np.zeros((rows, length), bool)
    for row, sequences in enumerate(bins):
        start = 0
        for segment, sequence in enumerate(sequences, start=1):
            places = slice(start, start + len(sequence.tokens) - 1)
            tokens[row, places] = sequence.tokens[:-1]
            targets[row, places] = sequence.tokens[1:]
            positions[row, places] = np.arange(len(sequence.tokens) - 1)
            segment_ids[row, places] = segment
            off_policy[row, places] = sequence.off_policy
            mask[row, places] = sequence.mask[1:]
            advantages[row, places] = sequence.advantage * sequence.mask[1:]
            if sequence.clipped is not None:
                advantages[row, places][sequence.clipped[1:]] = 0
            if sequence.behaviour_logprobs is not None:
                behaviour_logprobs[row, places] = sequence.behaviour_logprobs[1:]
            start = places.stop
    return PackedBatch(tokens, targets, positions, segment_ids, mask, advantages, behaviour_logprobs, off_policy)
