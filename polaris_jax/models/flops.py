"""Floating-point operations of an update."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polaris_jax.models.presets import ModelConfig
from polaris_jax.types import PackedBatch


def update_flops(model: ModelConfig, batches: Sequence[PackedBatch]) -> float:
    """Of one forward and backward pass over the real tokens of `batches`: what the loss needs, no recomputation."""
    tokens = pairs = trained = 0
    for batch in batches:
        real = np.asarray(batch.segment_ids) != 0
        tokens += int(real.sum())
        trained += int(np.count_nonzero(batch.mask))
        pairs += int((np.asarray(batch.positions)[real].astype(np.int64) + 1).sum())
    return train_flops(model, tokens, pairs, trained)


def train_flops(model: ModelConfig, tokens: float, pairs: float, unembedded: float | None = None) -> float:
    """Of a forward and backward pass, arguments as in `forward_flops`: three times the forward pass.

    Of a frozen base the backward pass computes no gradient, and so half as much; adapters are trained as all else is.
    """
    forward = forward_flops(model, tokens, pairs, unembedded)
    if model.lora is None:
        return 3 * forward
    return 2 * forward + forward_flops(model, 0, pairs) + 3 * 2.0 * model.num_adapter_parameters * tokens


def forward_flops(model: ModelConfig, tokens: float, pairs: float, unembedded: float | None = None) -> float:
    """2 per matmul parameter and token, and 4 per head dimension for each pair of tokens that see each other.

    unembedded: tokens whose logits are needed; None: all.
    """
    unembedding = model.vocab_size * model.hidden_size
    layers = model.num_parameters - unembedding * (1 if model.tie_word_embeddings else 2)
    unembedded = tokens if unembedded is None else unembedded
    attention = 4 * model.num_hidden_layers * model.num_attention_heads * model.head_dim
    return 2.0 * (layers * tokens + unembedding * unembedded) + float(attention) * pairs
