"""config.json in its old and new dialects, and what is refused."""

import pytest

from polaris_jax import hf
from polaris_jax.errors import UserError
from polaris_jax.models.presets import PRESETS, Yarn
from polaris_jax.models.rope import inverse_frequencies

# As published with Qwen3-4B and R1-Distill-Qwen-7B, in the dialect before transformers 5.
QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560, "initializer_range": 0.02,
    "intermediate_size": 9728, "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
R1_7B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
    "max_position_embeddings": 131072, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "use_mrope": False, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip


def without(data, *keys):
    """A copy lacking some keys."""
    return {key: value for key, value in data.items() if key not in keys}


def test_published_configs_equal_the_presets():
    assert hf.config_from_hf(QWEN3_4B) == PRESETS["qwen3-4b"]
    assert hf.config_from_hf(R1_7B) == PRESETS["r1-distill-qwen-7b"]


def test_new_dialect_equals_the_old():
    yarn = {"rope_type": "yarn", "factor": 1.5, "original_max_position_embeddings": 32768, "attention_factor": 1.0}
    old = QWEN3_4B | {"rope_scaling": yarn}
    new = without(QWEN3_4B, "rope_scaling", "rope_theta") | {"rope_parameters": yarn | {"rope_theta": 1000000}}
    expected = PRESETS["qwen3-4b"].replace(yarn=Yarn(1.5, 32768, 1.0))
    assert hf.config_from_hf(old) == hf.config_from_hf(new) == expected
    old = QWEN3_4B | {"rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert hf.config_from_hf(old).yarn == Yarn(4.0, 40960)


def test_what_users_add_to_files_of_transformers_5():
    new = without(QWEN3_4B, "rope_scaling", "rope_theta")
    new |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000}}
    added = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}
    assert hf.config_from_hf(new) == PRESETS["qwen3-4b"]
    for data in (new | added, QWEN3_4B | added, new | {"rope_theta": 1000000} | added):
        assert hf.config_from_hf(data) == PRESETS["qwen3-4b"].replace(yarn=Yarn(4.0, 32768))


def test_the_original_length_at_the_top():
    data = QWEN3_4B | {"original_max_position_embeddings": 32768, "max_position_embeddings": 131072}
    for rope in ({"type": "yarn", "factor": 4.0}, {"rope_type": "yarn", "factor": None}):
        assert hf.config_from_hf(data | {"rope_scaling": rope}).yarn == Yarn(4.0, 32768)
    assert hf.config_from_hf(data).yarn is None


def test_attn_factor_multiplies():
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    data = QWEN3_4B | {"rope_scaling": rope | {"attn_factor": 0.8782488562869419}}  # R1-0528-Qwen3-8B's
    config = hf.config_from_hf(data)
    assert inverse_frequencies(config)[1] == pytest.approx(1.0, abs=1e-9)
    assert hf.config_from_hf(hf.config_to_hf(config, "bfloat16")).yarn == config.yarn


def test_absent_keys_have_transformers_defaults():
    config = hf.config_from_hf(
        without(QWEN3_4B, "head_dim", "num_key_value_heads", "tie_word_embeddings", "rope_theta")
    )
    assert (config.head_dim, config.num_key_value_heads, config.tie_word_embeddings) == (128, 32, False)
    assert config.rope_theta == 10_000.0
    assert hf.config_from_hf(R1_7B | {"num_attention_heads": 56}).head_dim == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, r"here: model_type 'llama' is not supported; supported: qwen2, qwen3"),
        ({"model_type": "qwen3_moe"}, r"model_type 'qwen3_moe' is not supported"),
        ({"hidden_size": None}, r"here: hidden_size must be a positive integer, found None"),
        ({"vocab_size": "many"}, r"vocab_size must be a positive integer, found 'many'"),
        ({"num_key_value_heads": 5}, r"num_attention_heads 32 is no multiple of num_key_value_heads 5"),
        ({"head_dim": 5}, r"head_dim 5 is odd"),
        ({"hidden_act": "gelu"}, r"hidden_act 'gelu' is not supported; supported: silu"),
        ({"attention_bias": True}, r"attention_bias of a qwen3 model"),
        ({"quantization_config": {"bits": 4}}, r"quantised weights are not supported"),
        ({"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}, r"sliding window attention"),
        ({"layer_types": ["full_attention"] * 35 + ["sliding_attention"]}, r"sliding window attention is in use"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, r"rope_scaling: rope type 'linear' is not"),
        ({"rope_parameters": {"rope_type": "llama3"}}, r"rope_parameters: rope type 'llama3' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, r"rope_scaling: yarn needs a factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "2"}}, r"factor must be a positive number, found '2'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "mscale": "1"}}, r"mscale must be a number, found '1'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "attn_factor": 0}}, r"attn_factor must be a positive"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "short_factor": [1]}}, r"yarn with short_factor is not"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear"}},
            r"rope type 'linear' is not",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": False}}, r"yarn with truncate is not"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0.5 is not supported"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        hf.config_from_hf(QWEN3_4B | changes, "here")


def test_sliding_window_that_is_not_in_use_is_no_matter():
    data = R1_7B | {"use_sliding_window": True, "max_window_layers": 28}
    assert hf.config_from_hf(data) == PRESETS["r1-distill-qwen-7b"]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("yarn", [None, Yarn(1.5, 40_960, attention_factor=1.0)])
def test_json_round_trips(name, yarn):
    config = PRESETS[name].replace(yarn=yarn)
    assert hf.config_from_json(hf.config_to_json(config)) == config
    some = config.replace(known_tokens=config.vocab_size - 7)
    assert hf.config_from_json(hf.config_to_json(some)) == some
    again = hf.config_from_hf(hf.config_to_hf(config, "bfloat16"))
    assert again == config.replace(dtype=again.dtype, remat=again.remat)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"yarn": null, "vocab": 3}'])
def test_model_json_of_something_else(text):
    with pytest.raises(UserError, match=r"model\.json: not a model written by polaris_jax"):
        hf.config_from_json(text)
