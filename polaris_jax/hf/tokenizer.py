"""Tokenizers, prompts through the chat template, and the tokens that end a response."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers  # its heavy parts are loaded when first used
from transformers import PreTrainedTokenizerBase

from polaris_jax.errors import UserError
from polaris_jax.hf.config import config_from_hf, read_json
from polaris_jax.hf.hub import TOKENIZER_FILES, resolve


def load_tokenizer(source: str | Path, *, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory, a hub name, or a directory of ours (its `tokenizer/`).

    vocab_size: rows of the model's embedding, if known. Code from the hub is never run. Raises UserError when there
    is no tokenizer, no chat template, no EOS token, or a token id beyond the embedding.
    """
    directory = resolve(source, (*TOKENIZER_FILES, "config.json"))  # which may name stop tokens
    if (directory / "tokenizer").is_dir():
        directory = directory / "tokenizer"
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{directory}: no tokenizer here (tokenizer.json)")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers and tokenizers raise bare Exceptions for malformed files
        if (path := directory / "config.json").is_file():  # which transformers reads, too, and says less of
            eos_ids(read_json(path), path)
            config_from_hf(read_json(path), path)
        raise UserError(f"{directory}: the tokenizer cannot be loaded: {error}") from error
    check_tokenizer(tokenizer, directory, vocab_size=vocab_size)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, where: str | Path, *, vocab_size: int | None = None) -> None:
    """Raises UserError, naming `where`, for a tokenizer without chat template or EOS, or with too many tokens."""
    if not tokenizer.chat_template:
        raise UserError(f"{where}: no chat template (chat_template in tokenizer_config.json, or chat_template.jinja)")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{where}: no EOS token (eos_token in tokenizer_config.json): a response could never end")
    try:
        prompt_tokens(tokenizer, "?")
    except Exception as error:  # templates raise what they like
        raise UserError(f"{where}: the chat template cannot be used: {error}") from error
    largest = largest_id(tokenizer)
    if vocab_size is not None and largest >= vocab_size:
        raise UserError(f"{where}: token ids go up to {largest}, but the model's embedding has {vocab_size} rows")


def largest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id of a token."""
    return max([*tokenizer.get_vocab().values(), *stop_ids(tokenizer)])


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, question: str | Sequence[dict[str, str]]) -> np.ndarray:
    """int32 [prompt]: a user's question (or a list of role/content messages), up to where the assistant answers."""
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    return np.asarray(tokens, np.int32)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a response, ascending.

    They are the tokenizer's EOS, the token that ends a turn in its chat template, and the EOS tokens that
    `generation_config.json` and `config.json` name in the directory that it was loaded from.
    """
    named = eos_ids(read_generation_config(tokenizer)) + eos_ids(_beside(tokenizer, "config.json"), "config.json")
    return tuple(sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(turn_end(tokenizer)), *named}))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """The special token that the chat template writes behind what the assistant said; EOS where it writes none."""
    said = "Yes, 7."
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
    try:
        _, written, behind = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(said)
    except Exception:  # templates raise what they like; one without turns of the assistant is still good for sampling
        written = behind = ""
    if not written or tokenizer.eos_token in behind:
        return tokenizer.eos_token
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    there = [token for token in added | set(tokenizer.all_special_tokens) if token in behind]
    return min(there, key=behind.index, default=tokenizer.eos_token)


def read_generation_config(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`generation_config.json` of the directory that the tokenizer was loaded from; empty where there is none."""
    return _beside(tokenizer, "generation_config.json")


def _beside(tokenizer: PreTrainedTokenizerBase, name: str) -> dict[str, Any]:
    """A json file of the directory that the tokenizer was loaded from; empty where there is none."""
    path = Path(tokenizer.name_or_path) / name
    return read_json(path) if tokenizer.name_or_path and path.is_file() else {}


def eos_ids(config: dict[str, Any], name: str | Path = "generation_config.json") -> list[int]:
    """Its `eos_token_id`, which may be absent, a number or a list, as a list.

    Raises UserError, naming the file `name`, where it is anything else.
    """
    eos = config.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise UserError(f"{name}: eos_token_id must be a token id or a list of them, found {eos!r}")
    return ids
