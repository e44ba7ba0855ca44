"""Prompts are what the engine continues; conversations are learnt as they would be sampled."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from polaris_jax.data import arithmetic
from polaris_jax.data.arithmetic import CHAT_TEMPLATE as CHATML_TEMPLATE
from polaris_jax.data.problems import SUFFIX
from polaris_jax.data.prompts import make_prompts, tokenize_conversation, tokenize_conversations
from polaris_jax.types import Problem

# What Qwen3's template does to thoughts: kept in the last turn, in its own layout, and stripped from earlier turns.
QWEN3 = r"""
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' %}
{%- set content = m.content.split('</think>')[-1].lstrip('\n') %}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}
{%- set content = '<think>\n' + thought + '\n</think>\n\n' + content %}
{%- endif %}
{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# What R1-Distill's does: the prompt opens <think>, rendered turns have lost their thoughts.
R1 = r"""
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"""

# R1-Distill's as it came first: rendered turns have lost their thoughts, but the prompt does not open <think>.
R1_FIRST = R1.replace(r"assistant\n<think>\n", r"assistant\n")

# Others that keep only part of a turn: trimmed, thoughts from a field of their own only, without tags, or none at all.
TRIMMED = CHATML_TEMPLATE.replace("message['content']", "message['content'] | trim")
REASONING = r"""
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1].lstrip() + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
UNTAGGED = CHATML_TEMPLATE.replace(
    "message['content']", "message['content'].replace('<think>', '').replace('</think>', '')"
)
USERS_ONLY = CHATML_TEMPLATE.replace("message['content']", "(message['content'] if message['role'] == 'user' else '')")
LOSSY = [R1, R1_FIRST, TRIMMED, REASONING, UNTAGGED, USERS_ONLY]


def byte_tokenizer(chat_template):
    """Every byte is a token; <|im_start|> and <|im_end|> are one each."""
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


CHATML = byte_tokenizer(CHATML_TEMPLATE)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def parts(tokenizer, pair):
    """The text of a sequence, and its learnt stretches."""
    tokens, mask = pair
    assert tokens.dtype == np.int32
    assert mask.dtype == np.float32
    assert tokens.shape == mask.shape
    stretches = np.split(tokens, np.flatnonzero(np.diff(mask)) + 1)
    first = int(mask[0])
    return tokenizer.decode(tokens), [tokenizer.decode(part) for part in stretches[1 - first :: 2]]


def test_prompt_ends_where_the_assistant_begins():
    problem = Problem("a", "What is 1+1?", ("2",))
    prompt = make_prompts([problem], CHATML, 1024)[0]
    assert prompt.problem.id == "a"
    assert prompt.tokens.dtype == np.int32
    assert CHATML.decode(prompt.tokens) == "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n"


def test_too_long_prompts_are_dropped_and_counted(caplog):
    problems = [Problem(str(n), "x" * n, ("1",)) for n in range(5)]
    room = len(make_prompts(problems, CHATML, 1024)[3].tokens)
    assert [p.problem.id for p in make_prompts(problems, CHATML, room)] == ["0", "1", "2", "3"]
    assert f"1 of 5 prompts dropped: over {room} tokens" in caplog.text
    assert make_prompts([], CHATML, room) == []


def test_the_assistants_tokens_are_learnt_with_the_end_of_their_turn():
    messages = [{"role": "system", "content": "s"}, user("q1"), assistant("a1"), user("q2"), assistant("a2")]
    text, learnt = parts(CHATML, tokenize_conversation(CHATML, messages))
    assert text == CHATML.apply_chat_template(messages, tokenize=False).rstrip("\n")
    assert learnt == ["a1<|im_end|>", "a2<|im_end|>"]
    assert len(tokenize_conversations(CHATML, [messages])) == 1


def test_qwen3_thoughts_are_learnt_in_every_turn():
    tokenizer = byte_tokenizer(QWEN3)
    messages = [user("q1"), assistant("<think>t1</think>a1"), user("q2"), assistant("<think>\nt2\n</think>\n\na2")]
    first, second = (parts(tokenizer, pair) for pair in tokenize_conversations(tokenizer, [messages]))
    assert first[1] == ["<think>\nt1\n</think>\n\na1<|im_end|>"]
    assert second[1] == ["<think>\nt2\n</think>\n\na2<|im_end|>"]
    assert "<|im_start|>assistant\na1<|im_end|>" in second[0]
    assert parts(tokenizer, tokenize_conversation(tokenizer, messages)) == second


def test_r1_thoughts_are_learnt_though_its_template_drops_them():
    tokenizer = byte_tokenizer(R1)
    text, learnt = parts(tokenizer, tokenize_conversation(tokenizer, [user("q"), assistant("<think>\nt</think>a")]))
    assert text == "<|im_start|>user\nq<|im_end|><|im_start|>assistant\n<think>\nt</think>a<|im_end|>"
    assert learnt == ["t</think>a<|im_end|>"]


CONTENTS = [
    "<think>\nsum is 4\n</think>\n\n\\boxed{4}",
    "<think>sum is 4</think>\\boxed{4}",
    "sum is 4\n</think>\n\n\\boxed{4}",
    "<think>a</think> b <think>c</think> \\boxed{4}",
    "First. <think>sum is 4</think> \\boxed{4}",
    "  \\boxed{4}\n",
]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("template", [CHATML_TEMPLATE, QWEN3, *LOSSY])
def test_all_of_the_assistants_text_is_learnt(template, content):
    tokenizer = byte_tokenizer(template)
    messages = [user("2+2?"), assistant(content), user("2+2 again?"), assistant(content)]
    for conversation in (messages[:2], messages, messages[1:2]):
        for pair in tokenize_conversations(tokenizer, [conversation]):
            text, learnt = parts(tokenizer, pair)
            for turn in learnt:
                opened = "<think>" if text.split(turn)[0].rstrip().endswith("<think>") else ""
                assert "".join(content.split()) in opened + "".join(turn.split())
                assert turn.endswith("<|im_end|>")
                assert turn.count("<|im_end|>") == 1


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, QWEN3, *LOSSY])
def test_thoughts_in_a_field_of_their_own_are_learnt(template):
    tokenizer = byte_tokenizer(template)
    message = assistant("\\boxed{4}") | {"reasoning_content": "sum is 4"}
    text, learnt = parts(tokenizer, tokenize_conversation(tokenizer, [user("2+2?"), message]))
    assert text.endswith("<think>\nsum is 4\n</think>\n\n\\boxed{4}<|im_end|>")
    assert learnt[0].removeprefix("<think>\n") == "sum is 4\n</think>\n\n\\boxed{4}<|im_end|>"


def test_the_turn_ends_with_the_templates_token_where_that_is_not_eos():
    tokenizer = byte_tokenizer(CHATML_TEMPLATE)
    tokenizer.eos_token = "<|endoftext|>"
    _, learnt = parts(tokenizer, tokenize_conversation(tokenizer, [user("q"), assistant("a")]))
    assert learnt == ["a<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, QWEN3])
def test_a_lone_trace_follows_the_opening_of_its_turn(template):
    tokenizer = byte_tokenizer(template)
    trace = "<think>\nt\n</think>\n\na"
    text, learnt = parts(tokenizer, tokenize_conversation(tokenizer, [assistant(trace)]))
    assert text == f"<|im_start|>assistant\n{trace}<|im_end|>"
    assert learnt == [f"{trace}<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, QWEN3, R1])
def test_what_is_learnt_follows_the_very_prompt_that_is_sampled_from(template):
    tokenizer = byte_tokenizer(template)
    problem = Problem("a", f"What is 1+1? {SUFFIX}", ("2",))
    prompt = make_prompts([problem], tokenizer, 1024)[0].tokens
    tokens, mask = tokenize_conversation(tokenizer, [user(problem.question), assistant("<think>t</think>2")])
    np.testing.assert_array_equal(tokens[mask == 0], prompt)
    assert tokens[-1] == tokenizer.eos_token_id


def test_long_sequences_are_dropped_and_counted(caplog):
    rows = [[user("q"), assistant("a" * n)] for n in (1, 50)]
    assert len(tokenize_conversations(CHATML, rows, max_tokens=40)) == 1
    assert "1 of 2 sequences dropped: over 40 tokens" in caplog.text


def test_a_conversation_without_the_assistant_is_refused():
    with pytest.raises(ValueError, match="no assistant turn"):
        tokenize_conversation(CHATML, [user("q")])


def test_the_demos_traces_come_back_as_text():
    tokenizer = arithmetic.build_tokenizer(SUFFIX)
    for messages in arithmetic.conversations(20, SUFFIX, practice=0.5):
        _, learnt = parts(tokenizer, tokenize_conversation(tokenizer, messages))
        assert learnt == [messages[-1]["content"] + "<|im_end|>"], json.dumps(messages)
