"""The model, the lengths and the peer's model that all benchmarks share."""

import numpy as np

from polaris_jax.models.presets import ModelConfig

MODEL = ModelConfig(4096, 256, 768, 4, 8, 4, 32, dtype="float32")  # Qwen3 shape, tied
PROMPT = 64  # tokens
ROW_LENGTHS = {"fixed": (PROMPT + 256,), "ragged": (128, 160, 192, 256, 320, 448, PROMPT + 512)}  # of updates
ROWS = {"fixed": 4, "ragged": 3}  # of the longest in one batch of an update


def response_lengths(prompts: int, samples: int, longest: int, *, ragged: bool) -> np.ndarray:
    """Tokens of each response, int [prompts, samples]: `longest`, or clipped lognormal with a mean of a quarter of it.

    One ragged response is as long as allowed.
    """
    if not ragged:
        return np.full((prompts, samples), longest)
    lengths = np.random.default_rng(0).lognormal(np.log(longest / 4) - 0.32, 0.8, prompts * samples)
    lengths[0] = longest
    return np.clip(lengths, 8, longest).astype(int).reshape(prompts, samples)


def transformers_model():
    """Qwen3ForCausalLM of that shape, random weights, float32, sdpa."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    m = MODEL
    shape = Qwen3Config(
        vocab_size=m.vocab_size, hidden_size=m.hidden_size, intermediate_size=m.intermediate_size,
        num_hidden_layers=m.num_hidden_layers, num_attention_heads=m.num_attention_heads,
        num_key_value_heads=m.num_key_value_heads, head_dim=m.head_dim, tie_word_embeddings=True,
        eos_token_id=None, bos_token_id=None, pad_token_id=0, max_position_embeddings=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen3ForCausalLM._from_config(shape, attn_implementation="sdpa")
