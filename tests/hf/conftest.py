"""Tiny checkpoints and tokenizers, made once per session with transformers."""

import gzip
import logging
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

transformers.utils.logging.disable_progress_bar()

CHAT_TEMPLATE = (
    "{% for m in messages %}<s> {{ m.role }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)
WORDS = ["<pad>", "<s>", "</s>", "user", "assistant", "what", "is", "1", "+", "2", "?", "3"]


def save_checkpoint(directory: Path, config: transformers.PreTrainedConfig, *, seed=0, dtype="float32", **options):
    """Random weights large enough that every part of the model matters, saved by transformers; returns the model."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (1.0 if parameter.ndim == 1 else 0.0))
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(directory, **options)
    return model


def tiny_config(kind: str, **changes) -> transformers.PreTrainedConfig:
    """A Qwen3 or Qwen2 config of odd sizes: heads do not divide the width, head_dim is not width / heads."""
    sizes = dict(
        vocab_size=37, hidden_size=30, intermediate_size=22, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=14, max_position_embeddings=64, tie_word_embeddings=kind == "qwen3",
        bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )  # fmt: skip
    return transformers.AutoConfig.for_model(kind, **(sizes | changes))


def save_tokenizer(directory: Path, words=WORDS, **options) -> None:
    """A word-level tokenizer with a chat template, unless `options` say otherwise."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    settings = dict(eos_token="</s>", pad_token="<pad>", chat_template=CHAT_TEMPLATE) | options
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **settings).save_pretrained(directory)


def tensors(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint by name."""
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_same_bytes(a: Path, b: Path) -> None:
    """Same names, dtypes, shapes and bytes."""
    a, b = tensors(a), tensors(b)
    assert set(a) == set(b)
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name


@contextmanager
def no_warnings(caplog):
    """Fails on any Python warning, and on any log record of level warning or above."""
    logger = logging.getLogger("transformers")
    logger.propagate = True
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        yield
    logger.propagate = False
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory) -> Path:
    """A tied Qwen3 checkpoint in bfloat16 with tokenizer and generation config."""
    directory = tmp_path_factory.mktemp("qwen3")
    save_checkpoint(directory, tiny_config("qwen3"), dtype="bfloat16")
    save_tokenizer(directory)
    transformers.GenerationConfig(eos_token_id=[2, 0], pad_token_id=0).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory) -> Path:
    """An untied Qwen2 checkpoint in bfloat16, in several files, with tokenizer."""
    directory = tmp_path_factory.mktemp("qwen2")
    save_checkpoint(directory, tiny_config("qwen2"), dtype="bfloat16", max_shard_size="10KB")
    assert (directory / "model.safetensors.index.json").is_file()
    save_tokenizer(directory)
    return directory


@pytest.fixture
def copy_of(tmp_path):
    """copy_of(directory): a copy to damage."""

    def copy(directory: Path) -> Path:
        return Path(shutil.copytree(directory, tmp_path / f"copy_of_{directory.name}"))

    return copy


@pytest.fixture(scope="session")
def qwen3_tokenizer(tmp_path_factory) -> Path:
    """The real Qwen3 tokenizer, unpacked."""
    source, directory = Path(__file__).parent / "qwen3_tokenizer", tmp_path_factory.mktemp("qwen3_tokenizer")
    shutil.copy(source / "tokenizer_config.json", directory)
    (directory / "tokenizer.json").write_bytes(gzip.decompress((source / "tokenizer.json.gz").read_bytes()))
    return directory


@pytest.fixture(scope="session")
def random_tokens() -> np.ndarray:
    """int32 [2, 50] token ids of the tiny checkpoints."""
    return np.random.default_rng(0).integers(0, 37, (2, 50)).astype(np.int32)
