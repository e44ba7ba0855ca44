"""From text to tokens: problems to prompts that the engine continues, conversations to tokens that SFT learns."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from polaris_jax.hf.tokenizer import turn_end
from polaris_jax.types import Problem, Prompt

Messages = list[dict[str, str]]

_STAND_IN = [{"role": "user", "content": "?"}]


def make_prompts(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int | None = None
) -> list[Prompt]:
    """Each problem as the user's message in the tokenizer's chat template, up to where the assistant begins.

    Problems whose prompt has more than `max_prompt_tokens` tokens (None: any number) are left out and counted in the
    log.
    """
    texts = [_render(tokenizer, [{"role": "user", "content": problem.question}]) for problem in problems]
    prompts = list(map(Prompt, problems, _tokenize(tokenizer, texts)))
    most = sys.maxsize if max_prompt_tokens is None else max_prompt_tokens
    kept = [prompt for prompt in prompts if len(prompt.tokens) <= most]
    if len(kept) < len(prompts):
        dropped = len(prompts) - len(kept)
        logging.warning("%d of %d prompts dropped: over %d tokens", dropped, len(prompts), most)
    return kept


def tokenize_conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[np.ndarray, np.ndarray]:
    """A conversation up to its last assistant turn: tokens int32 [n] and mask float32 [n].

    The mask is 1 on the assistant's tokens, the token that ends the turn included. An earlier turn is context only
    (0) where the template renders it otherwise than it was sampled: Qwen3's strips the thoughts of earlier turns, and
    to learn what is left would be to learn answering without thinking; `tokenize_conversations` learns those as well.
    Where a template drops or changes part of the turn, as R1-Distill's drop thoughts, what is trained on is the turn
    as the conversation has it. A lone assistant turn follows the template's opening of it. Prompt and response are
    tokenized apart, as when sampling. Raises ValueError when there is no assistant turn.
    """
    return _sequences(tokenizer, messages, turn_end(tokenizer))[-1]


def tokenize_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Messages], *, max_tokens: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Conversations as sequences in which every assistant turn is trained on once, in the context it is sampled in.

    One exchange gives one sequence. A conversation of several gives one as well where the template renders earlier
    turns as they were sampled, else one a turn. Sequences longer than `max_tokens` are left out and counted in the log.
    """
    end = turn_end(tokenizer)
    every = [sequence for messages in conversations for sequence in _sequences(tokenizer, messages, end)]
    kept = [sequence for sequence in every if max_tokens is None or len(sequence[0]) <= max_tokens]
    if len(kept) < len(every):
        dropped = len(every) - len(kept)
        logging.warning("%d of %d sequences dropped: over %s tokens", dropped, len(every), max_tokens)
    return kept


def _sequences(tokenizer: PreTrainedTokenizerBase, messages: Messages, end: str) -> list[tuple[np.ndarray, np.ndarray]]:
    sequences: list[list[tuple[str, float]]] = []  # of pieces: a text, and 1 where it is trained on
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        # Templates refuse or misread a conversation that the assistant opens: it is rendered behind a stand-in.
        before_turn = messages[:turn] or _STAND_IN
        prompt = _render(tokenizer, before_turn)
        response = _response(tokenizer, [*before_turn, message], prompt, end)
        if turn == 0:
            prompt = prompt.removeprefix(tokenizer.apply_chat_template(_STAND_IN, tokenize=False))
        before = "".join(text for text, _ in sequences[-1]) if sequences else None
        if before is not None and prompt.startswith(before):
            sequences[-1] += [(prompt[len(before) :], 0.0), (response, 1.0)]
        else:
            sequences.append([(prompt, 0.0), (response, 1.0)])
    if not sequences:
        raise ValueError("the conversation has no assistant turn")
    return [_join(tokenizer, pieces) for pieces in sequences]


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _response(tokenizer: PreTrainedTokenizerBase, messages: Messages, prompt: str, end: str) -> str:
    """What is sampled after `prompt` to give the last message, `end`, the token that ends the turn, included."""
    written = _written(messages[-1])
    if prompt.rstrip().endswith("<think>"):
        written = written.removeprefix("<think>").lstrip("\n")
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    response = text[len(prompt) :] if text.startswith(prompt) else ""
    # Templates lay thoughts out in their own way, which is that of sampling, and some leave them out. R1-Distill's drop
    # them, whether or not their prompt opens <think>.
    if _squeezed(written) not in _squeezed(response):
        return written + end
    # Qwen's template writes a newline after the end of the turn, which is never sampled.
    return response[: response.rfind(end) + len(end)] if end in response else response.rstrip("\n") + end


def _written(message: dict[str, str]) -> str:
    """All text of an assistant's message, its thoughts first."""
    content, thoughts = message["content"].lstrip(), message.get("reasoning_content", "").strip("\n")
    return f"<think>\n{thoughts}\n</think>\n\n{content}" if thoughts else content


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[np.ndarray]:
    # The template has written the special tokens already.
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [np.asarray(row, np.int32) for row in ids]


def _join(tokenizer: PreTrainedTokenizerBase, pieces: list[tuple[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    tokens = _tokenize(tokenizer, [text for text, _ in pieces])
    masks = [np.full(len(piece), trained, np.float32) for piece, (_, trained) in zip(tokens, pieces, strict=True)]
    return np.concatenate(tokens), np.concatenate(masks)
