"""Directories as runs and evaluations leave them, of made-up steps and texts: nothing is trained."""

import json

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from configs import base
from polaris_jax import config as configs
from polaris_jax.evaluation.evaluate import judge
from polaris_jax.evaluation.job import save
from polaris_jax.evaluation.records import Responses
from polaris_jax.training import group_log
from polaris_jax.training.metrics import BINS, group_metrics
from polaris_jax.types import Group, Problem, Rollout
from tests.conftest import EvenLengthPool

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</script><img src=x onerror=\"document.title='owned'\">",
    "<!--<script>",
    "]]>&lt;b&gt;&amp;'\"`${1}{{ 7 * 7 }}",
    "controls \x00\x07\x1b[31m\x7f\x9b, separators \u2028\u2029, backwards \u202egnp.exe\u202c, \ufeff",
    "½ 数 🙂 é",
)
STAGES = (dict(name="short", steps=5), dict(name="<i>long</i>", steps=5))


def byte_tokenizer():
    """A token for each byte, so that every text can be said, some characters in several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)} | {"<|end|>": 256}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}<think>"
    return tokenizer


def group(tokenizer, problem, texts, rewards, seed=0):
    """A group that says these texts, with log-probs of chance."""
    rng, rollouts, gaps, entropies = np.random.default_rng(seed), [], [], []
    prompt = np.asarray(tokenizer(problem.question)["input_ids"], np.int32)
    for sample, text in enumerate(texts):
        tokens = np.asarray([*tokenizer(text)["input_ids"], 256], np.int32)
        logprobs = -rng.exponential(1, len(tokens)).astype(np.float32)
        rollouts.append(Rollout(problem.id, sample, prompt, tokens, logprobs, "stop"))
        gaps.append(rng.normal(0, 0.01, len(tokens)).astype(np.float32))
        entropies.append(rng.exponential(0.5, len(tokens)).astype(np.float32))
    reasons = tuple("equal" if reward else "unequal" for reward in rewards)
    made = Group(problem, tuple(rollouts), np.asarray(rewards, np.float32))
    return group_log.LoggedGroup(made, reasons, tuple(gaps), tuple(entropies))


TEXTS = ("<think>a</think>7", "<think>b</think>8") * 2


def make_run(workdir, steps=10, texts=lambda step: TEXTS, limit=256, **overrides):
    """A run of two stages with two groups each step. texts: of a step's responses, of at most `limit` tokens."""
    workdir.mkdir(parents=True)
    config = configs.override(base.get_config(), {"stages": STAGES, "rollout.max_response_tokens": limit} | overrides)
    (workdir / "config.json").write_text(config.to_json_best_effort())
    tokenizer, rows = byte_tokenizer(), []
    tokenizer.save_pretrained(workdir / "tokenizer")
    for step in range(1, steps + 1):
        said = texts(step)
        looked = []
        for i, right in enumerate((1 + step % 3, 4 * (step % 2))):
            problem = Problem(f"p{(step + i) % 7}", f"What is {step} + {i}?", (str(step + i),), "sums")
            looked.append(group(tokenizer, problem, said, [float(s < right) for s in range(len(said))], seed=step))
        group_log.keep(workdir, step, looked)
        metrics = group_metrics([one.group for one in looked], [said, said], limit)
        assert sum(metrics[f"response_length/part_{k}_of_{BINS}"] for k in range(1, BINS + 1)) == 2 * len(said)
        more = {"verdict/equal": 0.25, "verdict/unequal": 0.75, "seconds/rollout": 1.0, "seconds/update": 2.0}
        more |= {"stage": int(step > 5), "temperature": 1.0 + step / 100, "cost/device_hours": step / 10}
        more |= {"update/entropy": 1 / step, "loss": float("nan") if step == 3 else 0.1}
        rows.append({"step": step} | metrics | more)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workdir


def make_evaluation(output, texts, name="model"):
    """An evaluation of `len(texts)` problems, a list of responses each; those of even length are right."""
    output.mkdir(parents=True)
    given = [
        Responses(
            Problem(f"q{i}", f"Question {i} <b>?", (str(i),), "sums"), tuple(t), (None,) * len(t), ("stop",) * len(t)
        )
        for i, t in enumerate(texts)
    ]
    save(output, judge(given, EvenLengthPool()), name, {})
    return output
