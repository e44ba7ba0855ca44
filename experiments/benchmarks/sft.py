"""SFT of the demo's model against the plainest JAX loop that trains the same shape: one JSON line.

    python experiments/benchmarks/sft.py

The plain loop is what one writes on a first afternoon: one conversation a row, padded to the longest; a Python loop
over layers; dense causal attention; all logits and their cross-entropy; optax's AdamW behind its clip; one jitted step,
and nothing on the host but the loss of the step before. Ours packs, counts and checks as `training/sft.py` does,
without its files. Both see the same conversations, are warm, and take turns; tokens are useful ones, without padding.
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from configs import tiny
from polaris_jax.data.arithmetic import build_tokenizer, conversations
from polaris_jax.data.prompts import tokenize_conversations
from polaris_jax.models.presets import PRESETS
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training.sft import as_sft
from polaris_jax.training.state import init_state
from polaris_jax.training.update import make_update

flags.DEFINE_integer("steps", 60, "Updates timed on each side in each round.")
flags.DEFINE_integer("rounds", 3, "Turns of each side.")
FLAGS = flags.FLAGS


def norm(x, scale):
    """RMSNorm."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def rotate(x_BTHd, cos, sin):
    """Rotary positions, the halves of a head as pairs."""
    a, b = jnp.split(x_BTHd, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def plain_logits(params, tokens_BT, m):
    """Qwen3 as in a textbook, float32 [B, T, V]."""
    B, T = tokens_BT.shape
    angles = jnp.arange(T)[:, None] / m.rope_theta ** (jnp.arange(0, m.head_dim, 2) / m.head_dim)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    causal = jnp.tril(jnp.ones((T, T), bool))
    x = params["embedding"][tokens_BT]
    for p in params["layers"]:
        y = norm(x, p["attention_norm"])
        q, k, v = ((y @ p[name]).reshape(B, T, -1, m.head_dim) for name in "qkv")
        q, k = rotate(norm(q, p["q_norm"]), cos, sin), rotate(norm(k, p["k_norm"]), cos, sin)
        k, v = (jnp.repeat(one, m.num_attention_heads // m.num_key_value_heads, 2) for one in (k, v))
        scores = jnp.where(causal, jnp.einsum("BTHd,BSHd->BHTS", q, k) * m.head_dim**-0.5, -1e9)
        x = x + jnp.einsum("BHTS,BSHd->BTHd", jax.nn.softmax(scores), v).reshape(B, T, -1) @ p["o"]
        y = norm(x, p["mlp_norm"])
        x = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
    return norm(x, params["final_norm"]) @ params["embedding"].T


def plain_params(m):
    """Random parameters of that shape, tied."""
    rng = np.random.default_rng(0)
    random = lambda *shape: jnp.asarray(rng.normal(0, 0.02, shape), jnp.float32)  # noqa: E731
    D, F, N, K = m.hidden_size, m.intermediate_size, m.num_attention_heads, m.num_key_value_heads
    ones = {"attention_norm": jnp.ones(D), "mlp_norm": jnp.ones(D)}
    ones |= {"q_norm": jnp.ones(m.head_dim), "k_norm": jnp.ones(m.head_dim)}
    shapes = {"q": (D, N * m.head_dim), "k": (D, K * m.head_dim), "v": (D, K * m.head_dim), "o": (N * m.head_dim, D)}
    shapes |= {"gate": (D, F), "up": (D, F), "down": (F, D)}
    layers = [ones | {name: random(*shape) for name, shape in shapes.items()} for _ in range(m.num_hidden_layers)]
    return {"embedding": random(m.vocab_size, D), "layers": layers, "final_norm": jnp.ones(D)}


def make_plain(batches, m, config):
    """A function that takes some steps over the batches."""
    longest = max(len(tokens) for batch in batches for tokens, _ in batch)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(config.optimizer.learning_rate))
    params = plain_params(m)
    state = optimizer.init(params)

    def padded(batch):
        tokens, mask = np.zeros((len(batch), longest), np.int32), np.zeros((len(batch), longest), np.float32)
        for row, (one, trained) in enumerate(batch):
            tokens[row, : len(one)], mask[row, : len(one)] = one, trained
        return tokens, mask

    @jax.jit
    def step(params, state, tokens_BT, mask_BT):
        def loss(params):
            logits = plain_logits(params, tokens_BT[:, :-1], m)
            nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits, tokens_BT[:, 1:])
            return (nll_BT * mask_BT[:, 1:]).sum() / mask_BT[:, 1:].sum()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def run():
        nonlocal params, state
        before = None
        for batch in batches:
            params, state, value = step(params, state, *padded(batch))
            if before is not None:
                float(before)
            before = value
        return float(before)

    return run, longest


def make_ours(batches, m, config):
    """The same with the package's packing and update."""
    mesh = make_mesh({}, jax.devices()[:1])
    update, state = make_update(m, config, mesh), init_state(m, config, mesh)

    def run():
        nonlocal state
        for batch in batches:
            packed, _ = pack([Sequence(tokens, mask) for tokens, mask in batch], config.updates)
            state, metrics = update(state, packed, 1.0)
        return metrics["loss"]

    return run


def main(_):
    config = as_sft(tiny.get_config())
    tokenizer = build_tokenizer(config.data.suffix)
    m = PRESETS["tiny"].replace(vocab_size=len(tokenizer), dtype="float32", remat="none")
    size = config.sft.batch_size
    rows = tokenize_conversations(tokenizer, conversations(FLAGS.steps * size, config.data.suffix))
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    useful = sum(len(tokens) for tokens, _ in rows)
    plain, longest = make_plain(batches, m, config)
    sides = {"ours": make_ours(batches, m, config), "plain": plain}
    losses = {name: run() for name, run in sides.items()}  # compiles
    seconds = {name: [] for name in sides}
    for _ in range(FLAGS.rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            losses[name] = run()
            seconds[name].append(time.perf_counter() - start)
    speed = {name: round(useful / statistics.median(values), 1) for name, values in seconds.items()}
    line = {"workload": "sft", **speed, "ratio": round(speed["ours"] / speed["plain"], 3)}
    line |= {"plain_padded": round(len(rows) * longest / statistics.median(seconds["plain"]), 1)}
    print(json.dumps(line | {f"loss_{name}": round(value, 4) for name, value in losses.items()}), flush=True)


if __name__ == "__main__":
    app.run(main)
