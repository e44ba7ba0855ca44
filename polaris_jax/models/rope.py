"""Rotary position embeddings (arXiv 2104.09864) and YaRN (arXiv 2309.00071), angles in float32."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from polaris_jax.models.presets import ModelConfig, Yarn


def inverse_frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """Rotation speeds float32 [d / 2] in radians per position, and the factor on cos and sin."""
    half = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    periods = np.float32(config.rope_theta) ** half
    if config.yarn is None:
        return 1 / periods, 1.0
    return _yarn_frequencies(periods, config.rope_theta, config.head_dim, config.yarn)


def _yarn_frequencies(periods: np.ndarray, theta: float, head_dim: int, yarn: Yarn) -> tuple[np.ndarray, float]:
    """Fast rotations are kept, slow ones divided by the factor, with a linear ramp in between (YaRN, section 3.2)."""

    def dimension(rotations: float) -> float:
        context = yarn.original_max_position_embeddings
        return head_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(yarn.beta_fast)), 0)
    high = min(math.ceil(dimension(yarn.beta_slow)), head_dim - 1)
    width = (high - low) or 0.001  # avoids the division by zero
    kept = 1 - np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / np.float32(width), 0, 1)
    # transformers' order of operations: at position 90,000 a last bit here is a visible angle
    scaled = 1 / (np.float32(yarn.factor) * periods) * (1 - kept) + 1 / periods * kept
    return scaled, yarn_attention_factor(yarn.factor) if yarn.attention_factor is None else yarn.attention_factor


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """YaRN's factor on cos and sin (section 3.4), which is a temperature on the attention logits."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_tables(positions_BT: jnp.ndarray, config: ModelConfig) -> tuple[jnp.ndarray, jnp.ndarray]:
    """For `apply_rope` at int32 positions [B, T]: cos, and sin with the first half negative; float32 [B, T, 1, d]."""
    frequencies, scale = inverse_frequencies(config)
    angles = positions_BT[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles) * scale, jnp.sin(angles) * scale
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def apply_rope(x_BTHd: jnp.ndarray, cos: jnp.ndarray, signed_sin: jnp.ndarray) -> jnp.ndarray:
    """Rotates the pairs (i, i + d / 2) of each head; computed in float32, returned in x's dtype."""
    x32 = x_BTHd.astype(jnp.float32)
    swapped = jnp.roll(x32, x32.shape[-1] // 2, axis=-1)
    return (x32 * cos + swapped * signed_sin).astype(x_BTHd.dtype)
