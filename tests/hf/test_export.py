"""What `hf.save` writes, as transformers reads it."""

import json
import resource

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from polaris_jax import hf
from polaris_jax.errors import UserError
from polaris_jax.models.presets import Yarn

from .conftest import no_warnings

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_transformers_loads_and_generates_without_a_warning(kind, request, tmp_path, caplog):
    source = request.getfixturevalue(kind)
    config, params = hf.load(source)
    hf.save(params, config, tmp_path / "out", tokenizer=source, max_shard_bytes=10_000)
    with no_warnings(caplog):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        prompt = torch.tensor(hf.prompt_tokens(tokenizer, "what is 1 + 2 ?")[None]).long()
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False)
    assert output.shape[1] > prompt.shape[1]
    assert model.dtype == torch.bfloat16
    assert type(model).__name__ == {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]


def test_the_warning_check_bites(caplog):
    with pytest.raises(AssertionError, match="odd"), no_warnings(caplog):
        transformers.utils.logging.get_logger("transformers.anything").warning("odd")


def test_shards_and_index(qwen2, tmp_path):
    config, params = hf.load(qwen2)
    hf.save(params, config, tmp_path / "out", max_shard_bytes=3000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert set(index["weight_map"].values()) == {file.name for file in files}
    total = 0
    for file in files:
        tensors = load_file(file)
        assert all(index["weight_map"][name] == file.name for name in tensors)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 3000 or len(tensors) == 1
        total += size
    assert index["metadata"]["total_size"] == total == 2 * config.num_parameters


def test_generation_config_names_every_stop_token(qwen3, qwen2, tmp_path):
    for source, expected in ((qwen3, [2, 0]), (qwen2, 2)):
        config, params = hf.load(source)
        target = tmp_path / source.name
        hf.save(params, config, target, tokenizer=source, generation_config={"temperature": 1.4, "do_sample": True})
        written = json.loads((target / "generation_config.json").read_text())
        assert written["eos_token_id"] == json.loads((target / "config.json").read_text())["eos_token_id"] == expected
        assert (written["temperature"], written["pad_token_id"]) == (1.4, 0)
        assert hf.stop_ids(hf.load_tokenizer(target)) == hf.stop_ids(hf.load_tokenizer(source))


def test_tokenizer_object_is_as_good_as_a_directory(qwen3, tmp_path):
    config, params = hf.load(qwen3)
    tokenizer = hf.load_tokenizer(qwen3)
    hf.save(params, config, tmp_path / "out", tokenizer=tokenizer)
    again = hf.load_tokenizer(tmp_path / "out")
    assert hf.stop_ids(again) == hf.stop_ids(tokenizer)
    np.testing.assert_array_equal(hf.prompt_tokens(again, "what is 1 ?"), hf.prompt_tokens(tokenizer, "what is 1 ?"))


def test_yarn_for_inference(qwen3, tmp_path, caplog):
    config, params = hf.load(qwen3)
    hf.save(params, hf.with_yarn(config, Yarn(1.5, 64, attention_factor=1.0)), tmp_path / "out")
    with no_warnings(caplog):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    rope = model.config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["attention_factor"]) == ("yarn", 1.5, 1.0)
    assert rope["original_max_position_embeddings"] == 64
    assert model.config.max_position_embeddings == 96
    assert hf.load(tmp_path / "out")[0] == config.replace(yarn=Yarn(1.5, 64, 1.0), max_position_embeddings=96)
    with pytest.raises(UserError, match=r"yarn: factor 1\.3 x .* must be a whole number"):
        hf.save(params, hf.with_yarn(config, Yarn(1.3, 64)), tmp_path / "other")


def test_bad_calls_leave_nothing(qwen3, tmp_path, monkeypatch):
    config, params = hf.load(qwen3)
    with pytest.raises(UserError, match="dtype must be one of bfloat16, float16, float32, found 'int8'"):
        hf.save(params, config, tmp_path / "out", dtype="int8")
    with pytest.raises(UserError, match=r"parameter embedding: found shape \(37, 30\), the config expects \(37, 32\)"):
        hf.save(params, config.replace(hidden_size=32, head_dim=14), tmp_path / "out")
    with pytest.raises(UserError, match="found shape None, the config expects"):
        hf.save({**params, "embedding": {}}, config, tmp_path / "out")
    with pytest.raises(UserError, match="can be exported"):
        hf.config_to_hf(config.replace(qk_norm=False), "bfloat16")
    with pytest.raises(UserError, match="no tokenizer here"):
        hf.save(params, config, tmp_path / "out", tokenizer=tmp_path)
    monkeypatch.setattr("polaris_jax.hf.export.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hf.save(params, config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_nothing_is_left(qwen3, tmp_path):
    config, params = hf.load(qwen3)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))  # no file beyond 1000 bytes
    try:
        with pytest.raises(UserError, match="out: cannot be written: File too large; nothing is left of it"):
            hf.save(params, config, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert list(tmp_path.iterdir()) == []


def test_existing_target_is_kept_unless_told(qwen3, tmp_path):
    config, params = hf.load(qwen3)
    (tmp_path / "out").mkdir()
    hf.save(params, config, tmp_path / "out")  # an empty directory is no loss
    with pytest.raises(UserError, match="exists already"):
        hf.save(params, config, tmp_path / "out")
    doubled = jax.tree.map(lambda x: 2 * x, params)
    hf.save(doubled, config, tmp_path / "out", overwrite=True)
    np.testing.assert_array_equal(hf.load(tmp_path / "out")[1]["embedding"], doubled["embedding"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
