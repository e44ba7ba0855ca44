"""Logits equal transformers' on random checkpoints of odd shapes, in float32."""

import functools

import jax
import numpy as np
import pytest

from polaris_jax import hf
from polaris_jax.models.transformer import Transformer, unembed, unembedding

from .conftest import no_warnings, save_checkpoint, tiny_config

torch = pytest.importorskip("torch")

YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 1.5, "original_max_position_embeddings": 64}
CASES = {
    "qwen3 tied, 2 queries a kv head": ("qwen3", {}),
    "qwen3 untied, 8 queries a kv head": (
        "qwen3", dict(tie_word_embeddings=False, num_attention_heads=8, num_key_value_heads=1),
    ),
    "qwen3 multi-head, yarn": (
        "qwen3", dict(num_attention_heads=3, num_key_value_heads=3, rope_parameters=YARN),
    ),
    "qwen3 yarn with attention factor 1, theta 1e6, head 128": (
        "qwen3", dict(rope_parameters=YARN | {"attention_factor": 1.0, "rope_theta": 1e6}, head_dim=128),
    ),
    "qwen2 untied": ("qwen2", {}),
    "qwen2 tied, 7 queries a kv head": (
        "qwen2", dict(tie_word_embeddings=True, num_attention_heads=7, num_key_value_heads=1),
    ),
    "qwen2 multi-head, yarn": (
        "qwen2", dict(num_attention_heads=3, num_key_value_heads=3, rope_parameters=YARN),
    ),
}  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def _hidden(config, params, tokens, positions, segments):
    return Transformer(config).apply({"params": params}, tokens, positions, segments)[0]


def logits(config, params, tokens, positions=None, segments=None):
    """float32 [B, T, V]; by default one sequence a row."""
    positions = (
        np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape) if positions is None else positions
    )
    segments = np.ones_like(tokens) if segments is None else segments
    hidden = _hidden(config, params, tokens, positions, segments)
    return np.asarray(unembed(hidden, unembedding(params, config)))


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name, tmp_path, random_tokens, caplog):
    kind, changes = CASES[name]
    model = save_checkpoint(tmp_path / "theirs", tiny_config(kind, **changes))
    with torch.no_grad():
        expected = model(torch.tensor(random_tokens).long()).logits.numpy()
    config, params = hf.load(tmp_path / "theirs", dtype="float32")
    found = logits(config, params, random_tokens)
    delta = np.abs(found - expected).max()
    print(f"\n{name}: largest |delta logit| {delta:.1e}, largest |logit| {np.abs(expected).max():.1f}")
    assert delta < 1e-4

    hf.save(params, config, tmp_path / "ours", dtype="float32")
    with no_warnings(caplog):
        again = type(model).from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        np.testing.assert_array_equal(again(torch.tensor(random_tokens).long()).logits.numpy(), expected)


@pytest.mark.parametrize("kind", ["qwen3", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_packed_segments_equal_separate_sequences(kind, request, random_tokens):
    config, params = hf.load(request.getfixturevalue(kind), dtype="float32")
    lengths = [17, 1, 25]
    separate = np.zeros((3, 50), np.int32)  # one sequence a row, padded
    for row, length in zip(separate, lengths, strict=True):
        row[:length] = random_tokens[0, :length]
    alone = [row[:length] for row, length in zip(logits(config, params, separate), lengths, strict=True)]

    padding = 50 - sum(lengths)
    tokens = np.concatenate([random_tokens[0, :length] for length in [*lengths, padding]])[None]
    positions = np.concatenate([np.arange(length) for length in [*lengths, padding]])[None].astype(np.int32)
    segments = np.repeat([1, 2, 3, 0], [*lengths, padding])[None].astype(np.int32)
    packed = logits(config, params, tokens, positions, segments)[0]
    np.testing.assert_allclose(packed[: sum(lengths)], np.concatenate(alone), atol=1e-5)
