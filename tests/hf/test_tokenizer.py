"""Tokenizers: the real Qwen3 one, tiny ones, and the mistakes of users."""

import json
import shutil

import numpy as np
import pytest

from polaris_jax import hf
from polaris_jax.data import arithmetic
from polaris_jax.errors import UserError
from polaris_jax.hf.export import write_tokenizer
from polaris_jax.models.presets import PRESETS
from polaris_jax.runs.start import save_model_files
from tests.data.test_prompts import byte_tokenizer

from .conftest import save_tokenizer

QUESTION = "Find $x$ with $2^x = 8$. Let's think step by step and output the final answer within \\boxed{}."


@pytest.fixture(scope="module")
def qwen(qwen3_tokenizer):
    return hf.load_tokenizer(qwen3_tokenizer, vocab_size=151_936)


def test_qwen3_prompt_through_its_chat_template(qwen):
    tokens = hf.prompt_tokens(qwen, QUESTION)
    assert tokens.dtype == np.int32
    assert tokens.ndim == 1
    assert qwen.decode(tokens) == f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert tokens[:3].tolist() == [151644, 872, 198]
    assert tokens[-3:].tolist() == [151644, 77091, 198]


def test_qwen3_messages(qwen):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert qwen.decode(hf.prompt_tokens(qwen, messages)) == expected


@pytest.mark.parametrize(
    "text", [QUESTION, "<think>\n∑ᵢ xᵢ² ≥ 0, 数学, ж, 👍🏽\n</think>\n\n\\boxed{-1}", " \t\n  a  b\n\n"]
)
def test_qwen3_round_trip(qwen, text):
    assert qwen.decode(qwen(text)["input_ids"]) == text


def test_qwen3_special_tokens(qwen):
    assert qwen("<think></think><|im_end|>")["input_ids"] == [151667, 151668, 151645]
    assert hf.stop_ids(qwen) == (151645,)


def test_qwen3_stop_ids_with_its_generation_config(qwen3_tokenizer, tmp_path):
    shutil.copytree(qwen3_tokenizer, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}')
    assert hf.stop_ids(hf.load_tokenizer(tmp_path / "model")) == (151643, 151645)


def stops(directory, *, config=None, generation=None, **options):
    save_tokenizer(directory, **options)
    for name, eos in (("config.json", config), ("generation_config.json", generation)):
        if eos is not None:
            (directory / name).write_text(json.dumps({"model_type": "qwen2", "eos_token_id": eos}))
    return hf.stop_ids(hf.load_tokenizer(directory))


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (None, None, (2,)),
        ([2, 0], None, (0, 2)),
        (0, None, (0, 2)),
        (None, [2, 7], (2, 7)),
        ([0], [2, 7], (0, 2, 7)),
        ([], [], (2,)),
    ],
)
def test_stop_ids_are_those_of_all_files(tmp_path, config, generation, expected):
    assert stops(tmp_path, config=config, generation=generation) == expected


def test_the_token_that_ends_a_turn_stops_though_it_is_not_eos(tmp_path):
    special = {"eos_token": "<s>", "extra_special_tokens": ["</s>"]}
    assert stops(tmp_path, **special) == (1, 2)
    (tmp_path / "other").mkdir()
    unended = "{% for m in messages %}{{ m.content }} {% endfor %}"
    assert stops(tmp_path / "other", **special, chat_template=unended) == (1,)


def test_stop_ids_of_config_json_survive_import_training_and_export(qwen3, copy_of, tmp_path):
    source = copy_of(qwen3)
    (source / "generation_config.json").unlink()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 0]}))
    hf.import_model(source, tmp_path / "ours")
    assert hf.stop_ids(hf.load_tokenizer(tmp_path / "ours")) == (0, 2)
    hf.export_model(tmp_path / "ours", tmp_path / "theirs")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "theirs" / name).read_text())["eos_token_id"] == [0, 2]
    (tmp_path / "run").mkdir()
    model, params = hf.load(source)
    tokenizer = hf.load_tokenizer(source)
    save_model_files(tmp_path / "run", model, tokenizer)
    assert hf.stop_ids(hf.load_tokenizer(tmp_path / "run")) == (0, 2)
    hf.save(params, model, tmp_path / "saved", tokenizer=tokenizer)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["eos_token_id"] == [0, 2]


@pytest.mark.parametrize("eos", ["</s>", -1, [2, None], {"id": 2}, True, 2.0])
def test_stop_ids_that_are_none(tmp_path, eos):
    with pytest.raises(UserError, match=r"config\.json: eos_token_id must be a token id or a list of them"):
        stops(tmp_path, config=eos)


def class_of(directory):
    return json.loads((directory / "tokenizer_config.json").read_text())["tokenizer_class"]


@pytest.mark.parametrize(
    ("name", "model_type"),
    [("LlamaTokenizerFast", "qwen2"), ("LlamaTokenizerFast", "qwen3"), ("Qwen2TokenizerFast", "qwen3")],
)
def test_a_tokenizer_keeps_its_class_through_import_training_and_export(tmp_path, name, model_type):
    source, run, written = tmp_path / "source", tmp_path / "run", tmp_path / "written"
    byte_tokenizer(arithmetic.CHAT_TEMPLATE).save_pretrained(source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": name}))
    (source / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer, model = hf.load_tokenizer(source), PRESETS["tiny"]
    run.mkdir()
    written.mkdir()
    save_model_files(run, model, tokenizer)
    save_model_files(run, model, hf.load_tokenizer(run))  # as when it is resumed
    write_tokenizer(run / "tokenizer", run)  # as an export does
    write_tokenizer(tokenizer, written)
    for directory in (run / "tokenizer", run, written):
        assert class_of(directory) == name
        assert hf.load_tokenizer(directory)(QUESTION)["input_ids"] == tokenizer(QUESTION)["input_ids"]
    assert (source / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()


def test_what_only_transformers_5_knows_is_not_written(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    tokenizer = arithmetic.build_tokenizer("")
    write_tokenizer(tokenizer, tmp_path / "tokenizer")
    written = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(written.get("extra_special_tokens", {}), list)
    again = hf.load_tokenizer(tmp_path)
    assert again.all_special_ids == tokenizer.all_special_ids
    assert again.get_vocab() == tokenizer.get_vocab()


def test_qwen3_tokenizer_larger_than_the_model(qwen3_tokenizer):
    with pytest.raises(UserError, match="token ids go up to 151668, but the model's embedding has 151668 rows"):
        hf.load_tokenizer(qwen3_tokenizer, vocab_size=151_668)


def test_directory_of_ours(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    save_tokenizer(tmp_path / "tokenizer")
    tokenizer = hf.load_tokenizer(tmp_path)
    assert (
        tokenizer.decode(hf.prompt_tokens(tokenizer, "what is 1 + 2 ?"))
        == "<s> user what is 1 + 2 ? </s> <s> assistant"
    )
    assert hf.stop_ids(tokenizer) == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": None}, r"no chat template \(chat_template in tokenizer_config\.json"),
        ({"eos_token": None}, r"no EOS token \(eos_token in tokenizer_config\.json\)"),
    ],
)
def test_incomplete_tokenizers(options, message, tmp_path):
    save_tokenizer(tmp_path, **options)
    with pytest.raises(UserError, match=message):
        hf.load_tokenizer(tmp_path)


def test_no_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no tokenizer here \(tokenizer\.json\)"):
        hf.load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        hf.load_tokenizer(tmp_path / "typo")
    with pytest.raises(UserError, match=r"or give a local directory with tokenizer\.json, tokenizer_config\.json"):
        hf.load_tokenizer("owner/typo")


@pytest.mark.parametrize("text", ["{", '{"version": "1.0"}'])
def test_broken_tokenizer(text, tmp_path):
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        hf.load_tokenizer(tmp_path)


def test_code_in_a_tokenizer_is_not_run(tmp_path):
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}}
    path.write_text(json.dumps(settings | {"tokenizer_class": "Tokenizer"}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tokenizer: pass\n")
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        hf.load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()
