"""Tokenizers: the real Qwen3 one, tiny ones, and the mistakes of users."""

import json
import shutil

import numpy as np
import pytest

from polaris_jax import hf
from polaris_jax.errors import UserError

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
