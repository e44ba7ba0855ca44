"""An evaluation's model is split over as few devices as hold it, with what is left for the cache."""

import json

import pytest

from configs import base
from polaris_jax import config as configs
from polaris_jax.errors import UserError
from polaris_jax.plan.evaluation import fit

GIB = 2**30
SIZES = {  # of Qwen3, as its config.json has them: layers, width, mlp, heads
    "4B": (36, 2560, 9728, 32),
    "14B": (40, 5120, 17408, 40),
    "32B": (64, 5120, 25600, 64),
}


@pytest.fixture
def config_of(tmp_path):
    def make(size, **overrides):
        layers, hidden, mlp, heads = SIZES[size]
        found = dict(
            model_type="qwen3", vocab_size=151_936, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=8, head_dim=128, rope_theta=1e6, rms_norm_eps=1e-6,
            tie_word_embeddings=size == "4B", max_position_embeddings=40_960, hidden_act="silu", attention_bias=False,
            eos_token_id=151_645,
        )  # fmt: skip
        (tmp_path / size).mkdir(exist_ok=True)
        (tmp_path / size / "config.json").write_text(json.dumps(found))
        changes = {"model.path": str(tmp_path / size), "evaluation.max_response_tokens": 32_768}
        return configs.override(base.get_config(), changes | overrides)

    return make


@pytest.mark.parametrize(
    ("size", "gib", "devices", "tensor"),
    [("4B", 73, 1, 1), ("4B", 73, 8, 1), ("14B", 73, 8, 2), ("32B", 73, 8, 4), ("32B", 40, 8, 8)],
)
def test_the_smallest_split_that_fits_is_taken(config_of, size, gib, devices, tensor):
    config = config_of(size)
    fitted = fit(config, gib * GIB, devices)
    assert fitted.mesh.tensor == tensor
    assert fitted.rollout.cache_gib < gib  # 256 slots of 33K tokens would need terabytes
    # What is left of the memory holds the cache: weights of bfloat16, split, and float32 ones over all devices.
    parameters = {"4B": 4.0e9, "14B": 14.8e9, "32B": 32.8e9}[size]
    assert fitted.rollout.cache_gib + parameters * (2 / tensor + 4 / devices) / GIB < gib


def test_what_fits_anyway_or_is_set_stays(config_of):
    config = config_of("4B", **{"rollout.slots": 2, "evaluation.max_response_tokens": 1024})
    assert fit(config, float("inf"), 8) is config
    assert fit(config, 73 * GIB, 1).rollout.cache_gib == 0
    assert fit(config_of("4B", **{"mesh.tensor": 4}), 73 * GIB, 8).mesh.tensor == 4
    assert fit(config_of("4B", **{"rollout.cache_gib": 20.0}), 73 * GIB, 1).rollout.cache_gib == 20.0


def test_what_fits_nowhere_is_refused_with_the_arithmetic(config_of):
    with pytest.raises(UserError, match=r"32B does not fit here: over 2 devices -?[\d.]+ of 20.00 GiB are left"):
        fit(config_of("32B"), 20 * GIB, 2)
