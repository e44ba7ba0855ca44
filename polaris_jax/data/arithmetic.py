r"""Chained arithmetic in words: graded, endless, verifiable; small enough for a tiny model on two cores.

    Start with 22, first +5, second *2, third -7. What is the result?

Every total stays between 10 and 59. A trace is careful (one operation a line) or hasty (several operations folded
into one line, a leap that a tiny model cannot compute in its head):

    careful: <think> 22. first +5 on 22 is 27. second *2 on 27 is 54. third -7 on 54 is 47.</think> ...
    hasty:   <think> 22. first +5 second *2 on 22 is 54. third -7 on 54 is 47.</think> ...

A model that imitates both styles knows every single operation and yet fails often, so that reinforcement learning has
something true to find: write out every step. Reward and response length grow together, as they do with real reasoning
models.

There are two tasks (`TASKS`): the demo's, and one of longer chains on which every part of the recipe has something to
do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from polaris_jax.data.problems import problem_id
from polaris_jax.files import write_whole
from polaris_jax.types import Problem

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
OPERATIONS = (*(f"{sign}{n}" for sign in "+-" for n in range(1, 10)), "*2", "*3")
LOWEST, HIGHEST = 10, 59  # of every total
TEST_SHARE = 16  # one problem in so many is held out


@dataclass(frozen=True)
class Task:
    """Chains of some lengths, and how the SFT traces on them are written.

    operations: fewest and most of a problem; all numbers between are equally likely. practised: the same of the traces
    without a question. careful: share of the careful style at the end of SFT, for each number of `operations`.
    """

    name: str
    operations: tuple[int, int]
    practised: tuple[int, int]
    careful: tuple[float, ...]


DEMO = Task("arithmetic", (2, 7), (5, 7), (0.35,) * 6)
# After SFT chains of up to four operations are mostly right and longer ones ever more rarely: a third of the problems
# has no right response among eight. A right one to a long chain is longer than the hasty ones that the model gives.
LONG = Task("long_arithmetic", (2, 10), (7, 10), (1.0, 1.0, 1.0, 0.3, 0.06, 0.02, 0.01, 0.005, 0.002))
TASKS = {task.name: task for task in (DEMO, LONG)}


@dataclass(frozen=True)
class Chain:
    """A start and the operations on it. totals[i] is the total before operation i; the last one is the answer."""

    operations: tuple[str, ...]
    totals: tuple[int, ...]

    @property
    def question(self) -> str:
        """The problem in words, without the recipe's suffix."""
        steps = ", ".join(f"{word} {op}" for word, op in zip(ORDINALS, self.operations, strict=False))
        return f"Start with {self.totals[0]}, {steps}. What is the result?"

    @property
    def split(self) -> str:
        """ "train" or "test", decided by a hash of the question, so that the splits never overlap."""
        digest = hashlib.sha256(self.question.encode()).digest()
        return "test" if digest[0] % TEST_SHARE == 0 else "train"

    def trace(self, line_lengths: tuple[int, ...]) -> str:
        """The response that folds `line_lengths[i]` operations into its i-th line; all 1 is the careful style."""
        parts, done = [f"{self.totals[0]}."], 0
        for length in line_lengths:
            words = " ".join(f"{ORDINALS[i]} {self.operations[i]}" for i in range(done, done + length))
            parts.append(f"{words} on {self.totals[done]} is {self.totals[done + length]}.")
            done += length
        return f"<think> {' '.join(parts)}</think>\nThe answer is \\boxed{{{self.totals[-1]}}}"


def _apply(total: int, operation: str) -> int:
    operand = int(operation[1:])
    return {"+": total + operand, "-": total - operand, "*": total * operand}[operation[0]]


# total -> the operations that keep it in range, with the totals that follow
_ALLOWED = {
    total: [(op, _apply(total, op)) for op in OPERATIONS if LOWEST <= _apply(total, op) <= HIGHEST]
    for total in range(LOWEST, HIGHEST + 1)
}


def sample_chain(rng: Random, operations: tuple[int, int] = DEMO.operations) -> Chain:
    """A random chain whose number of operations is uniform in the closed range `operations`."""
    totals, chosen = [rng.randint(LOWEST, HIGHEST)], []
    for _ in range(rng.randint(*operations)):
        operation, total = rng.choice(_ALLOWED[totals[-1]])
        chosen.append(operation)
        totals.append(total)
    return Chain(tuple(chosen), tuple(totals))


def chains(split: str, seed: int, operations: tuple[int, int] = DEMO.operations) -> Iterator[Chain]:
    """Endless distinct chains of one split."""
    rng = Random(f"{split} {seed}")
    seen = set()
    while True:
        chain = sample_chain(rng, operations)
        if chain.split == split and chain.question not in seen:
            seen.add(chain.question)
            yield chain


def problems(split: str, count: int, suffix: str, seed: int = 0, task: Task = DEMO) -> list[Problem]:
    """`count` problems of a split; `suffix` is the instruction put behind each question."""
    return [
        Problem(
            id=problem_id(chain.question),
            question=f"{chain.question} {suffix}",
            answers=(str(chain.totals[-1]),),
            source=task.name,
        )
        for chain in islice(chains(split, seed, task.operations), count)
    ]


def hasty_lines(rng: Random, operations: int) -> tuple[int, ...]:
    """Random line lengths of two to four operations that cover `operations`; one may be left for the last line."""
    lines: list[int] = []
    while (left := operations - sum(lines)) > 0:
        lines.append(min(rng.randint(2, 4), left))
    return tuple(lines)


def conversations(
    count: int,
    suffix: str,
    seed: int = 0,
    task: Task = DEMO,
    *,
    practice: float = 0.3,
    mixing: tuple[float, float] = (0.6, 0.75),
) -> list[list[dict[str, str]]]:
    """SFT conversations on training chains, as lists of {role, content}, in the order to learn them.

    practice: share of the careful ones that is a long trace without its question, which teaches arithmetic cheaply.
    mixing: parts of the whole between which the hasty style comes in, its share growing linearly. Before, it would keep
        a tiny model from learning the arithmetic; at once, it would shake what is learnt.
    """
    rng = Random(f"styles {seed}")
    asked, practised = chains("train", seed, task.operations), chains("train", seed, task.practised)
    rows, coming = [], next(asked)
    for i in range(count):
        mixed = (i / count - mixing[0]) / (mixing[1] - mixing[0])
        careful = task.careful[len(coming.operations) - task.operations[0]]
        if rng.random() < (1 - careful) * min(max(mixed, 0.0), 1.0):
            rows.append(_asked(coming, hasty_lines(rng, len(coming.operations)), suffix))
            coming = next(asked)
        elif rng.random() < practice:
            chain = next(practised)
            rows.append(_asked(chain, (1,) * len(chain.operations), suffix)[1:])
        else:
            rows.append(_asked(coming, (1,) * len(coming.operations), suffix))
            coming = next(asked)
    return rows


def _asked(chain: Chain, line_lengths: tuple[int, ...], suffix: str) -> list[dict[str, str]]:
    question = {"role": "user", "content": f"{chain.question} {suffix}"}
    return [question, {"role": "assistant", "content": chain.trace(line_lengths)}]


_LINE = re.compile(r"((?:\w+ [+\-*]\d+ )+)on (\d+) is (\d+)\.")


def lines(response: str) -> list[tuple[int, bool]]:
    """Of each line of a trace how many operations it has, and whether its result is right for what the line says."""
    found = []
    for words, total, result in _LINE.findall(response):
        operations = words.split()[1::2]
        found.append((len(operations), int(result) == reduce(_apply, operations, int(total))))
    return found


CHAT_TEMPLATE = (
    "{#- The assistant's answers begin with <think>...</think>. -#}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>")
_PIECES = r"<think>|</think>|[+\-*]?\d+|\\boxed\{| ?[A-Za-z']+ ?|[.,?] ?|\s|."


def build_tokenizer(suffix: str, task: Task = DEMO) -> PreTrainedTokenizerFast:
    """A word-level tokenizer for a task's problems, with a Qwen-style chat template; it decodes to the exact text.

    A number is always one token, whatever stands around it: the spaces belong to the words.
    """
    most = task.operations[1]
    example = Chain(OPERATIONS[:most], tuple(range(LOWEST, LOWEST + most + 1)))
    texts = [
        f"{example.question} {suffix}",
        example.trace((1,) * most),
        "system\nuser\nassistant\n",
    ]
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    words = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    words |= set(OPERATIONS) | {str(n) for n in range(100)} | {f" {word} " for word in ORDINALS[:most]}
    vocab = {word: i for i, word in enumerate([*_SPECIAL, *sorted(words - set(_SPECIAL))])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def write_conversations(path: Path, rows: list[list[dict[str, str]]]) -> None:
    """SFT conversations as jsonl, one {"messages": [...]} a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps({"messages": row}) + "\n" for row in rows))
