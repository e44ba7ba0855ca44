"""What `hf.load` refuses, and where it puts the parameters."""

import json
import re

import jax
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file, save_file

from polaris_jax import hf
from polaris_jax.errors import UserError
from polaris_jax.models.transformer import init_params
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import param_shardings

from .conftest import save_checkpoint, tiny_config


def edit(directory, change):
    """Rewrites model.safetensors after `change(tensors)`."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_tree_is_that_of_the_model(kind, request):
    config, params = hf.load(request.getfixturevalue(kind))
    expected = nn.unbox(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)
    assert jax.tree.map(lambda x: x.sharding, params) == param_shardings(config, make_mesh(devices=jax.devices()[:1]))
    assert config.dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes_are_read(dtype, tmp_path):
    model = save_checkpoint(tmp_path, tiny_config("qwen3"), dtype=dtype)
    _, params = hf.load(tmp_path)
    expected = model.model.layers[1].mlp.up_proj.weight.detach().float().numpy()
    np.testing.assert_array_equal(params["layers"]["mlp"]["up"]["kernel"][1], expected.T)


def test_each_wrong_tensor_is_named(qwen3, copy_of):
    directory = copy_of(qwen3)

    def damage(tensors):
        del tensors["model.layers.1.self_attn.q_norm.weight"]
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:7]
        tensors["model.layers.0.self_attn.k_proj.bias"] = np.zeros(28, np.float32)

    edit(directory, damage)
    with pytest.raises(UserError) as error:
        hf.load(directory)
    assert str(error.value) == (
        f"{directory}: does not fit its config.json: "
        "model.safetensors: tensor model.norm.weight has shape [7], expected [30]; "
        "tensor model.layers.1.self_attn.q_norm.weight is missing, expected shape [14]; "
        "model.safetensors: tensor model.layers.0.self_attn.k_proj.bias is not part of this model"
    )


BUFFERS = (
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.1.self_attn.rotary_emb.inv_freq",
    "model.rotary_emb.inv_freq",
    "model.rotary_emb.original_inv_freq",
    "model.layers.0.self_attn.rotary_emb.cos_cached",
    "model.layers.0.self_attn._extra_state",
)


def test_buffers_are_ignored_and_that_is_said_once(qwen3, copy_of, caplog):
    directory = copy_of(qwen3)
    edit(directory, lambda tensors: tensors.update({name: np.ones(7, np.float32) for name in BUFFERS}))
    jax.tree.map(np.testing.assert_array_equal, hf.load(directory)[1], hf.load(qwen3)[1])
    (said,) = [record.getMessage() for record in caplog.records if "buffers" in record.getMessage()]
    assert f"{directory}: 6 buffers ignored, such as model.layers.0.self_attn._extra_state" in said
    edit(directory, lambda tensors: tensors.update({"model.rotary_emb_weight": np.ones(7, np.float32)}))
    with pytest.raises(UserError, match=r"tensor model\.rotary_emb_weight is not part of this model$"):
        hf.load(directory)


def test_long_lists_of_wrong_tensors_are_cut(qwen3, copy_of):
    directory = copy_of(qwen3)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"intermediate_size": 24, "num_hidden_layers": 9}))
    with pytest.raises(UserError, match=r"; and \d+ more$"):
        hf.load(directory)


def test_integer_tensor(qwen3, copy_of):
    directory = copy_of(qwen3)
    edit(directory, lambda tensors: tensors.update({"model.norm.weight": np.zeros(30, np.int32)}))
    with pytest.raises(UserError, match=r"model\.safetensors: tensor model\.norm\.weight is I32, expected floats"):
        hf.load(directory)


def test_tied_checkpoint_may_carry_the_same_head_and_no_other(qwen3, copy_of):
    directory = copy_of(qwen3)
    edit(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}))
    jax.tree.map(np.testing.assert_array_equal, hf.load(directory)[1], hf.load(qwen3)[1])
    edit(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] * 2}))
    with pytest.raises(UserError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight, but the two differ"):
        hf.load(directory)


def test_missing_shard(qwen2, copy_of):
    directory = copy_of(qwen2)
    shard = sorted(directory.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=re.escape(f"{shard}: no such file, though the checkpoint's index names it")):
        hf.load(directory)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}'])
def test_broken_index(qwen2, copy_of, text):
    directory = copy_of(qwen2)
    (directory / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json: "):
        hf.load(directory)


def test_index_reads_nothing_outside_its_directory(qwen2, copy_of):
    directory = copy_of(qwen2)
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(UserError, match=re.escape(f"{directory / 'secret.safetensors'}: no such file")):
        hf.load(directory)


@pytest.mark.parametrize("keep", [5, 200, -3])
def test_truncated_file(qwen3, copy_of, keep):
    file = copy_of(qwen3) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        hf.load(file.parent)


def test_pickled_weights_are_not_read(qwen3, copy_of):
    directory = copy_of(qwen3)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(UserError, match="only pickled weights"):
        hf.load(directory)


def test_sources_that_are_none(qwen3, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        hf.load(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        hf.load(tmp_path / "typo")
    with pytest.raises(UserError, match="expected a directory, found a file"):
        hf.load(qwen3 / "config.json")
    with pytest.raises(UserError, match=r"owner/typo: .*hub is not reachable .*or give a local directory with config"):
        hf.load("owner/typo")
    with pytest.raises(UserError, match="not a training run's directory"):
        hf.load(qwen3, step=3)


def test_hub_name_is_fetched_without_code_or_pickles(qwen3, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(qwen3)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    config, _ = hf.load("owner/model")
    assert config.vocab_size == 37
    assert list(asked) == ["owner/model"]
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in asked["owner/model"])
