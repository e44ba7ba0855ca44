"""Tokens/s of the rollout engine and of transformers' `generate` on one checkpoint, in one run: one JSON line a batch.

    python experiments/benchmarks/generate.py --checkpoint=DIR --batches=8 --prompt=32 --new=32

Both sample with temperature 1 from the whole vocabulary, in float32, one response to each prompt, all of `--new`
tokens, with as many threads as the process may use. The engine has a slot for each prompt. Both are warm, take turns,
and each figure is the median of the rounds; the peer's is that of the better of its attention implementations.
--checkpoint: a Hugging Face directory; without one, random weights of Qwen2.5-0.5B's shape.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from absl import app, flags

from configs.base import get_config
from polaris_jax import hf
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.types import Problem, Prompt

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A Hugging Face directory; default: random weights.")
BATCHES = flags.DEFINE_list("batches", ["8"], "Sequences decoded at once.")
PROMPT = flags.DEFINE_integer("prompt", 32, "Tokens of each prompt.")
NEW = flags.DEFINE_integer("new", 32, "Tokens sampled to each.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed runs of each side, after one to warm up.")
ATTENTION = ("sdpa", "eager")


def write_checkpoint(directory: str) -> None:
    """Random weights of Qwen2.5-0.5B's shape, bfloat16."""
    shape = transformers.Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, rope_theta=1e6, max_position_embeddings=32_768,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(shape).to(torch.bfloat16).save_pretrained(directory)


def make_ours(checkpoint: str, tokens_BT: np.ndarray) -> Callable[[], None]:
    """A function that samples to all prompts."""
    mesh, config = make_mesh(), get_config().rollout
    model, params = hf.load(checkpoint, mesh=mesh, dtype="float32")
    config.update(slots=len(tokens_BT), max_response_tokens=NEW.value)
    engine, rounds = RolloutEngine(model, mesh, config), iter(range(1_000_000))
    prompts = [Prompt(Problem(str(i), "", ()), row) for i, row in enumerate(tokens_BT)]
    sampling = Sampling(max_response_tokens=NEW.value)

    def run() -> None:
        for rollout in engine.generate(params, prompts, 1, sampling, next(rounds)):
            assert len(rollout.tokens) == NEW.value

    return run


def make_peers(checkpoint: str, tokens_BT: np.ndarray) -> dict[str, Callable[[], None]]:
    """The same with transformers, by attention implementation; they share the weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokens = torch.tensor(tokens_BT).long()
    new = dict(max_new_tokens=NEW.value, min_new_tokens=NEW.value, pad_token_id=0)

    def run(attention: str) -> None:
        model.set_attn_implementation(attention)
        with torch.inference_mode():
            made = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=True, top_k=0, top_p=1.0, **new
            )
        assert made.shape[1] == PROMPT.value + NEW.value

    return {attention: lambda attention=attention: run(attention) for attention in ATTENTION}


def measure(checkpoint: str, batch: int) -> dict[str, float]:
    """One line."""
    tokens_BT = np.random.default_rng(1).integers(0, 4096, (batch, PROMPT.value)).astype(np.int32)
    sides = {"ours": make_ours(checkpoint, tokens_BT)} | make_peers(checkpoint, tokens_BT)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS.value + 1):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            if number:  # the first compiles
                seconds[name].append(time.perf_counter() - began)
    speed = {name: batch * NEW.value / statistics.median(taken) for name, taken in seconds.items()}
    peer = max(speed[name] for name in ATTENTION)
    return {
        "batch": batch,
        **{name: round(value, 1) for name, value in speed.items()},
        "ratio": round(speed["ours"] / peer, 2),
    }


def main(_):
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        if not CHECKPOINT.value:
            write_checkpoint(scratch)
        for batch in map(int, BATCHES.value):
            shape = {"threads": threads, "prompt": PROMPT.value, "new": NEW.value}
            print(json.dumps(shape | measure(CHECKPOINT.value or scratch, batch)), flush=True)
            gc.collect()


if __name__ == "__main__":
    app.run(main)
