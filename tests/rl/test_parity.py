"""The GRPO gradient equals the one that torch with transformers or peft computes from the paper's formula, unpacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from polaris_jax import hf
from polaris_jax.hf.peft import adapter_tensors
from polaris_jax.models.lora import join
from polaris_jax.models.presets import LORA_TARGETS, Lora
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import sharded_adapters

from .conftest import policy_gradient

torch = pytest.importorskip("torch")

SHAPE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128,
)  # fmt: skip
MODELS = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=False)),
}
TEMPERATURE = 0.8


def slow_loss(model, sequences):
    """One sequence at a time, ratios to the recorded log-probs, clip (0.2, 0.28), token mean."""
    total, count = 0.0, 0
    for s in sequences:
        tokens = torch.tensor(s.tokens).long()
        logp = torch.log_softmax(model(tokens[None, :-1]).logits[0].float() / TEMPERATURE, dim=-1)
        logp = logp.gather(1, tokens[1:, None])[:, 0]
        ratio = torch.exp(logp - torch.tensor(s.behaviour_logprobs[1:]))
        objective = torch.minimum(ratio * s.advantage, torch.clamp(ratio, 0.8, 1.28) * s.advantage)
        mask = torch.tensor(s.mask[1:])
        total, count = total - (objective * mask).sum(), count + int(mask.sum())
    return total / count


@pytest.mark.parametrize("kind", MODELS)
def test_gradient_equals_transformers(kind, tmp_path, sequences, config):
    torch.manual_seed(0)
    theirs = MODELS[kind]().train()
    theirs.save_pretrained(tmp_path / "before")
    model, params = hf.load(tmp_path / "before", dtype="float32")
    config.algorithm.old_logprobs = "recorded"
    grads, loss = policy_gradient(params, sequences, config, temperature=TEMPERATURE, model=model)

    expected = slow_loss(theirs, sequences)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    with torch.no_grad():  # their gradient in our names: saved as if it were a checkpoint
        for p in theirs.parameters():
            p.copy_(p.grad)
    theirs.save_pretrained(tmp_path / "gradient")
    _, expected_grads = hf.load(tmp_path / "gradient", dtype="float32")
    found, wanted = (np.concatenate([np.ravel(g) for g in jax.tree.leaves(t)]) for t in (grads, expected_grads))
    assert found @ wanted / (np.linalg.norm(found) * np.linalg.norm(wanted)) > 0.99999
    for name, (x, y) in enumerate(zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True)):
        x, y = np.ravel(x), np.ravel(np.asarray(y))
        assert x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) > 0.99999, name
        assert np.linalg.norm(x) == pytest.approx(np.linalg.norm(y), rel=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_gradient_of_adapters_equals_pefts(kind, tmp_path, sequences, config):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    theirs = MODELS[kind]().train()
    theirs.save_pretrained(tmp_path / "base")
    model, base = hf.load(tmp_path / "base", dtype="float32")
    model, rng = model.replace(lora=Lora(3, 12.0, LORA_TARGETS)), np.random.default_rng(0)
    adapters = sharded_adapters(model, make_mesh({}, jax.devices()[:1]), 0)
    adapters = jax.tree.map(lambda x: jnp.float32(0.1 * rng.normal(size=x.shape)), adapters)
    hf.save_adapters(adapters, model, tmp_path / "adapters")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapters", is_trainable=True)
    config.algorithm.old_logprobs = "recorded"

    grads, loss = policy_gradient(join(adapters, base), sequences, config, temperature=TEMPERATURE, model=model)
    found = adapter_tensors(jax.tree.map(jnp.asarray, grads), model)
    expected = slow_loss(theirs, sequences)
    expected.backward()
    named = {name.replace(".default", ""): p for name, p in theirs.named_parameters() if p.requires_grad}
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert found.keys() == named.keys()
    for name, parameter in named.items():
        largest = float(parameter.grad.abs().max())
        np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-3, atol=1e-4 * largest, err_msg=name)
