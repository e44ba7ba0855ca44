"""Steps/s of one whole GRPO step (rollout, verify, update), and of TRL's GRPOTrainer in the same run.

    pip install -e '.[peers]'
    python experiments/benchmarks/step.py --workloads=fixed,ragged

One JSON line a workload. 8 prompts of 64 tokens x 8 samples, up to 256 (fixed) or 512 (ragged) tokens; random weights,
float32; each figure is the median of `--steps` steps after one to warm up. Both sides sample the same number of tokens:
ours by limits, TRL's by a logits processor that ends each row at its length. Both verify each response.
"""

import json
import os
import statistics
import tempfile
import time
from functools import partial

import jax
import numpy as np
import torch
from absl import app, flags
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast, TrainerCallback
from workloads import MODEL, PROMPT, ROW_LENGTHS, ROWS, response_lengths, transformers_model

from configs.base import get_config
from polaris_jax.rollout import RolloutEngine
from polaris_jax.sampler import Sampler, make_sampling, verifier_pool
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training.host import HostState
from polaris_jax.training.state import init_state
from polaris_jax.training.step import Stage, train_step
from polaris_jax.training.update import make_update
from polaris_jax.types import Problem, Prompt

WORKLOADS = flags.DEFINE_list("workloads", ["fixed", "ragged"], "Which ones.")
STEPS = flags.DEFINE_integer("steps", 3, "Timed steps of each side, after one to warm up.")
PEER = flags.DEFINE_boolean("peer", True, "Measure TRL, too.")

PROMPTS, SAMPLES, PEER_ROWS = 8, 8, 16  # PEER_ROWS: of one micro-batch of the peer
ANSWER = "42"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One word a token."""
    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(2, MODEL.vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_prompts() -> np.ndarray:
    """int32 [prompts, tokens], random."""
    return np.random.default_rng(1).integers(2, MODEL.vocab_size, (PROMPTS, PROMPT)).astype(np.int32)


def ours(limits: np.ndarray, workload: str, tokenizer: PreTrainedTokenizerFast) -> tuple[list[float], dict[str, float]]:
    """Seconds of each timed step, and the metrics of the last."""
    config = get_config()
    longest = int(limits.max())
    config.rollout.update(prompts=PROMPTS, samples=SAMPLES, slots=limits.size, max_response_tokens=longest)
    config.updates.row_lengths, config.updates.rows = ROW_LENGTHS[workload], ROWS[workload]
    config.reward.workers = 1
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    engine = RolloutEngine(MODEL, mesh, config.rollout)
    engine.generate = partial(engine.generate, limits=limits)
    problems = [Problem(str(i), "", (ANSWER,)) for i in range(PROMPTS)]
    state, host, seconds = init_state(MODEL, config, mesh), HostState(), []
    with verifier_pool(config) as verifier:
        sampler, sampling = Sampler(engine, tokenizer, verifier), make_sampling(config.rollout, ())
        prompts = list(map(Prompt, problems, make_prompts()))
        stage = Stage(config, prompts, sampler, sampling, make_update(MODEL, config, mesh), None)
        for _ in range(STEPS.value + 1):
            began = time.perf_counter()
            state, host, groups, metrics = train_step(state, host, stage, last=True)
            seconds.append(time.perf_counter() - began)
            assert sum(len(r.tokens) for group in groups for r in group.rollouts) == limits.sum()
    return seconds[1:], metrics


class EndAtLimit(LogitsProcessor):
    """Ends row i of a batch after limits[i] tokens, and not before."""

    def __init__(self, limits: np.ndarray, eos: int):
        self.limits, self.eos = torch.tensor(limits), eos

    def __call__(self, input_ids, scores):
        last = input_ids.shape[1] - PROMPT + 1 == self.limits
        eos = torch.where(last, scores[:, self.eos], -torch.inf)
        scores = torch.where(last[:, None], -torch.inf, scores)
        scores[:, self.eos] = eos
        return scores


class Clock(TrainerCallback):
    """Notes the time of each step's begin and end."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.began)


def peer(limits: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> list[float]:
    """Seconds of each timed step of TRL's GRPOTrainer: DAPO's token mean, no KL, no old-log-prob pass."""
    from trl import GRPOConfig, GRPOTrainer
    from trl.rewards import accuracy_reward

    sampled = []

    def reward(completions, completion_ids, **_):
        sampled.append(sum(map(len, completion_ids)))
        chats = [[{"role": "assistant", "content": text}] for text in completions]
        return [value or 0.0 for value in accuracy_reward(chats, [f"${ANSWER}$"] * len(chats))]

    with tempfile.TemporaryDirectory() as output:
        settings = GRPOConfig(
            output_dir=output, per_device_train_batch_size=PEER_ROWS,
            gradient_accumulation_steps=limits.size // PEER_ROWS, num_generations=SAMPLES,
            max_completion_length=int(limits.max()), max_steps=STEPS.value + 1, temperature=1.0, beta=0.0,
            loss_type="dapo", epsilon=0.2, epsilon_high=0.28, learning_rate=1e-6, use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        clock, model = Clock(), transformers_model()
        processors = LogitsProcessorList([EndAtLimit(limits.reshape(-1), tokenizer.eos_token_id)])
        model.generate = partial(model.generate, logits_processor=processors)
        trainer = GRPOTrainer(
            model, reward, args=settings, processing_class=tokenizer, callbacks=[clock],
            train_dataset=Dataset.from_dict({"prompt": [tokenizer.decode(tokens) for tokens in make_prompts()]}),
        )  # fmt: skip
        trainer.train()
    assert set(sampled) == {limits.sum()}, f"TRL sampled {sampled} tokens, not {limits.sum()} a step"
    return clock.seconds[1:]


def main(_):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = make_tokenizer()
    for name in WORKLOADS.value:
        limits = response_lengths(PROMPTS, SAMPLES, ROW_LENGTHS[name][-1] - PROMPT, ragged=name == "ragged")
        seconds, metrics = ours(limits, name, tokenizer)
        rate = 1 / statistics.median(seconds)
        line = {"workload": name, "ours": round(rate, 3), "tokens": int(limits.sum())}
        if PEER.value:
            theirs = 1 / statistics.median(peer(limits, tokenizer))
            line |= {"peer": round(theirs, 3), "ratio": round(rate / theirs, 2)}
        line |= {f"{part}_s": round(metrics[f"seconds/{part}"], 2) for part in ("rollout", "update")}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app.run(main)
