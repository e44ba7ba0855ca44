"""What the report shows of rollouts: whole groups, with what sampler and trainer said of each token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from polaris_jax import hf
from polaris_jax.errors import UserError
from polaris_jax.report.parts import cut, fitting, in_turn, short, spread, thoughts_end
from polaris_jax.report.runs import stage_of
from polaris_jax.rewards.answers import final_box
from polaris_jax.training.group_log import LoggedGroup, load, logged_steps
from polaris_jax.types import Rollout

BUDGET = 11_000_000  # bytes of the page
CAPS = (2**20, 2**14, 2**12, 2**10)  # tokens of a response's thoughts, and of the rest
ENOUGH = 64  # groups


class Place(NamedTuple):
    """One step of a run. shown: what the page shows of the run."""

    workdir: Path
    step: int
    shown: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase


def collect(found: Mapping[str, Path], shown: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Groups of all runs that fit the budget, by run and step, and notes for the reader.

    found: the runs' directories. shown: what `runs.run` gave for each. Where not all groups fit, long responses lose
    their middle, and what is left is spread over the steps.
    """
    rows, notes, total = [], [], 0
    for (name, workdir), one in zip(found.items(), shown, strict=True):
        steps = [step for step in logged_steps(workdir) if step <= one["last"]]  # a kill may leave later ones
        try:
            tokenizer = hf.load_tokenizer(workdir) if steps else None
            rows.append([Place(workdir, steps[i], one, tokenizer) for i in spread(len(steps))])
            total += len(steps)
        except UserError as error:
            notes.append(f"{name}: rollouts are not shown: {error}")
    groups = fitting(in_turn(rows), lambda place, cap: _groups(place, cap, notes), BUDGET, CAPS, ENOUGH)
    taken = len({(group["run"], group["step"]) for group in groups})
    if taken < total:
        notes.append(f"Groups of {taken} of {total} logged steps are shown, spread over the run: all would not fit.")
    order = {one["name"]: number for number, one in enumerate(shown)}
    return sorted(groups, key=lambda group: (order[group["run"]], group["step"])), list(dict.fromkeys(notes))


def pieces(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token; one that ends within a character has none, and the token that ends it has it all."""
    stream, backend = DecodeStream(skip_special_tokens=False), tokenizer.backend_tokenizer
    return [stream.step(backend, int(token)) or "" for token in tokens]


def _groups(place: Place, cap: int, notes: list[str]) -> Iterator[dict[str, Any]]:
    try:
        logged = load(place.workdir, place.step)
    except UserError as error:
        notes.append(str(error))
        return
    for one in logged:
        problem, rollouts = one.group.problem, one.group.rollouts
        yield {
            "run": place.shown["name"],
            "step": place.step,
            "stage": stage_of(place.shown, place.step),
            "problem": problem.id,
            "source": problem.source,
            "question": short(problem.question, 4000),
            "prompt": short(place.tokenizer.decode(rollouts[0].prompt_tokens), 20_000),
            "answers": [short(answer) for answer in problem.answers],
            "samples": [_sample(one, i, place.tokenizer, cap) for i in range(len(rollouts))],
        }


def _sample(one: LoggedGroup, i: int, tokenizer: PreTrainedTokenizerBase, cap: int) -> dict[str, Any]:
    rollout: Rollout = one.group.rollouts[i]
    texts = pieces(rollout.tokens, tokenizer)
    end, text = thoughts_end(texts), "".join(texts)
    values = {"logprobs": rollout.logprobs, "gaps": one.gaps[i], "entropies": one.entropies[i]}
    box = final_box(text, require_think=False)
    return {
        "sample": rollout.sample,
        "reward": float(one.group.rewards[i]),
        "reason": one.reasons[i],
        "finish": rollout.finish_reason,
        "tokens": len(rollout.tokens),
        "answer": short(box) if type(box) is str else None,
        "thoughts": cut(texts[:end], cap, **{name: array[:end] for name, array in values.items()}),
        "final": cut(texts[end:], cap, **{name: array[end:] for name, array in values.items()}),
    }
