"""Model shapes: a `ModelConfig` from a preset's name or from a Hugging Face `config.json`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension (arXiv 2309.00071), field names as in transformers' `rope_parameters`."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters beside the projections of a frozen base model (LoRA, arXiv 2106.09685).

    rank, alpha: an adapter adds (alpha / rank) x A B to what its projection makes of x. targets: projections that have
    one, of `LORA_TARGETS`. weights: "" where the base is kept in the compute dtype, else what its kernels are quantised
    to, a name of `quantise.CODES`. base: directory or hub name that the base is loaded from. checksum: `lora.checksum`
    of what was found there.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    weights: str = ""
    base: str = ""
    checksum: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides what the transformer computes; names as in Hugging Face's `config.json`.

    qk_norm: RMSNorm on q and k per head (Qwen3). attention_bias: bias on q, k, v (Qwen2).
    dtype: compute dtype; parameters are cast to it where they are used. Logits and softmax stay float32.
    remat: which activations the backward pass keeps, a name of `transformer.REMAT_POLICIES`.
    known_tokens: ids from here on are rows of the vocabulary that the tokenizer has no token for: they are never
        sampled, and no part of any softmax; 0: there are none.
    lora: the adapters that are trained in place of the model itself; None: all of it is trained.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    qk_norm: bool = True
    attention_bias: bool = False
    max_position_embeddings: int = 40_960
    yarn: Yarn | None = None
    dtype: str = "bfloat16"
    remat: str = "none"
    known_tokens: int = 0
    lora: Lora | None = None

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)

    @property
    def num_parameters(self) -> int:
        """Number of parameters, the unembedding counted once when tied, without adapters."""
        d, f, qd, kd = (
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads * self.head_dim,
            self.num_key_value_heads * self.head_dim,
        )
        block = 2 * d * qd + 2 * d * kd + 3 * d * f + 2 * d
        block += 2 * self.head_dim if self.qk_norm else 0
        block += qd + 2 * kd if self.attention_bias else 0
        return self.num_hidden_layers * block + d + self.vocab_size * d * (1 if self.tie_word_embeddings else 2)

    @property
    def num_adapter_parameters(self) -> int:
        """Number of parameters of LoRA's adapters."""
        if self.lora is None:
            return 0
        d, f, qd, kd = (
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads * self.head_dim,
            self.num_key_value_heads * self.head_dim,
        )
        both = dict(zip(LORA_TARGETS, (d + qd, d + kd, d + kd, qd + d, d + f, d + f, f + d), strict=True))
        return self.num_hidden_layers * self.lora.rank * sum(both[target] for target in self.lora.targets)


def _qwen3(layers: int, hidden: int, mlp: int, heads: int, *, tied: bool) -> ModelConfig:
    return ModelConfig(151_936, hidden, mlp, layers, heads, 8, 128, tie_word_embeddings=tied)


def _r1_distill(layers: int, hidden: int, mlp: int, heads: int, kv_heads: int, *, vocab: int) -> ModelConfig:
    return ModelConfig(
        vocab, hidden, mlp, layers, heads, kv_heads, 128, rope_theta=1e4, tie_word_embeddings=False, qk_norm=False,
        attention_bias=True, max_position_embeddings=131_072,
    )  # fmt: skip


PRESETS = {
    "tiny": ModelConfig(
        176, 128, 384, 2, 4, 2, 32, rope_theta=100.0, tie_word_embeddings=False, max_position_embeddings=512,
        dtype="float32",
    ),
    "qwen3-0.6b": _qwen3(28, 1024, 3072, 16, tied=True),
    "qwen3-1.7b": _qwen3(28, 2048, 6144, 16, tied=True),
    "qwen3-4b": _qwen3(36, 2560, 9728, 32, tied=True),
    "qwen3-8b": _qwen3(36, 4096, 12288, 32, tied=False),
    "r1-distill-qwen-1.5b": _r1_distill(28, 1536, 8960, 12, 2, vocab=151_936),
    "r1-distill-qwen-7b": _r1_distill(28, 3584, 18944, 28, 4, vocab=152_064),
}  # fmt: skip
