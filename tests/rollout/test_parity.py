"""Greedy responses equal those of transformers' `generate` on random checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from polaris_jax.hf.import_ import load
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.types import Problem, Prompt
from tests.rollout.conftest import rollout_config

SHAPE = dict(
    vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rope_theta=1e4, initializer_range=0.3,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("family", "tied", "yarn"),
    [
        ("Qwen3", True, False),
        pytest.param("Qwen3", False, True, marks=pytest.mark.slow),
        pytest.param("Qwen2", True, False, marks=pytest.mark.slow),
        pytest.param("Qwen2", False, True, marks=pytest.mark.slow),
    ],
)
def test_greedy_equals_transformers(tmp_path, mesh, family, tied, yarn):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape = {k: v for k, v in SHAPE.items() if k != "head_dim" or family == "Qwen3"}
    make = getattr(transformers, f"{family}Config"), getattr(transformers, f"{family}ForCausalLM")
    torch.manual_seed(0)
    theirs = make[1](make[0](**shape, tie_word_embeddings=tied)).eval()
    theirs.save_pretrained(tmp_path)
    if yarn:  # by config at inference only: the checkpoint knows nothing of it
        rope = dict(
            rope_type="yarn", rope_theta=1e4, factor=1.5, original_max_position_embeddings=64, attention_factor=1.0
        )
        extended = make[1](make[0](**shape, tie_word_embeddings=tied, rope_parameters=rope)).eval()
        extended.load_state_dict(theirs.state_dict())
        theirs = extended
    model, params = load(tmp_path, dtype="float32")
    config = rollout_config(yarn_factor=1.5 if yarn else 1.0)
    engine = RolloutEngine(model, mesh, config)
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, 97, n).astype(np.int32) for n in (1, 9, 30)]
    prompts = [Prompt(Problem(str(i), "", ()), each) for i, each in enumerate(tokens)]
    for r in engine.generate(params, prompts, 1, Sampling(temperature=0.0, max_response_tokens=50), 0):
        with torch.no_grad():
            prompt = torch.tensor(r.prompt_tokens)[None].long()
            out = theirs.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=50, do_sample=False, pad_token_id=0
            )
        assert r.tokens.tolist() == out[0, prompt.shape[1] :].tolist()
