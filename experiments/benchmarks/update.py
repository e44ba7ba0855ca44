"""One GRPO update against torch and transformers doing it as TRL does: one JSON line a workload.

    python experiments/benchmarks/update.py --workloads=fixed,ragged

Tokens are useful tokens (prompt and response, no padding) of the batch. Both sides use the threads the process may
use, are warm, and take turns; figures are medians of the rounds, the matmul peak too.
"""

import ctypes
import gc
import json
import os
import re
import statistics
import time
from pathlib import Path

import jax
import numpy as np
import torch
from absl import app, flags
from workloads import MODEL, PROMPT, ROW_LENGTHS, ROWS, response_lengths, transformers_model

from configs.base import get_config
from polaris_jax.models.flops import update_flops
from polaris_jax.ops.matmul import matmul_peak
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training.state import init_state
from polaris_jax.training.update import make_update

flags.DEFINE_integer("rounds", 3, "Updates timed on each side.")
flags.DEFINE_list("workloads", ["fixed", "ragged"], "Which to run.")
FLAGS = flags.FLAGS

PEER_ROWS = 16  # of one micro-batch of the peer, which pads to the longest
CLIP = (0.2, 0.28)


def make_sequences(lengths):
    """Random tokens, advantages and log-probs."""
    rng = np.random.default_rng(1)
    made = []
    for length in lengths:
        tokens = rng.integers(0, MODEL.vocab_size, PROMPT + length).astype(np.int32)
        mask = np.r_[np.zeros(PROMPT), np.ones(length)].astype(np.float32)
        made.append(Sequence(tokens, mask, float(rng.normal()), np.full(len(tokens), -8.3, np.float32)))
    return made


def make_ours(sequences, workload):
    """A function that packs and makes one update; the packing is part of what is timed."""
    config = get_config()
    config.updates.row_lengths, config.updates.rows = ROW_LENGTHS[workload], ROWS[workload]
    mesh = make_mesh({}, jax.devices()[:1])
    update = make_update(MODEL, config, mesh)
    state = init_state(MODEL, config, mesh)

    def run():
        nonlocal state
        batches, packing = pack(sequences, config.updates)
        state, metrics = update(state, batches, 1.0)
        return metrics | packing | {"flops": update_flops(MODEL, batches)}

    return run


def make_peer(sequences, old_pass):
    """TRL's update: padded micro-batches, logits of the response only, log-probs, clipped loss, AdamW.

    old_pass: first compute the old log-probs without a gradient.
    """
    model = transformers_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01)
    longest = max(len(s.tokens) for s in sequences) - PROMPT
    count = sum(len(s.tokens) - PROMPT for s in sequences)

    def micro_batches():
        for i in range(0, len(sequences), PEER_ROWS):
            chunk = sequences[i : i + PEER_ROWS]
            tokens = torch.zeros(len(chunk), PROMPT + longest, dtype=torch.long)
            mask = torch.zeros(len(chunk), PROMPT + longest)
            for row, s in enumerate(chunk):
                tokens[row, : len(s.tokens)], mask[row, : len(s.tokens)] = torch.tensor(s.tokens).long(), 1.0
            yield tokens, mask, torch.tensor([s.advantage for s in chunk])[:, None]

    def logprobs(tokens, mask):
        logits = model(tokens, attention_mask=mask.long(), logits_to_keep=longest + 1).logits[:, :-1]
        chosen = logits.gather(2, tokens[:, PROMPT:, None])[..., 0]
        return chosen - torch.logsumexp(logits, dim=-1)

    def run():
        olds = []
        if old_pass:
            with torch.no_grad():
                olds = [logprobs(tokens, mask) for tokens, mask, _ in micro_batches()]
        for i, (tokens, mask, advantages) in enumerate(micro_batches()):
            logp = logprobs(tokens, mask)
            ratio = torch.exp(logp - (olds[i] if old_pass else logp.detach()))
            objective = torch.minimum(ratio * advantages, torch.clamp(ratio, 1 - CLIP[0], 1 + CLIP[1]) * advantages)
            (-(objective * mask[:, PROMPT:]).sum() / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return run


def peak_growth_mib(run):
    """Largest resident memory during a run, over that before it, in MiB (proc(5))."""
    status = lambda name: int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # noqa: E731
    ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps for later is not in use
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 2**10


def main(_):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for workload in FLAGS.workloads:
        longest = ROW_LENGTHS[workload][-1] - PROMPT
        sequences = make_sequences(response_lengths(8, 8, longest, ragged=workload == "ragged").reshape(-1))
        useful = sum(len(s.tokens) for s in sequences)
        ours = make_ours(sequences, workload)
        sides = {"ours": ours, "peer": make_peer(sequences, False), "peer_with_old_pass": make_peer(sequences, True)}
        for run in sides.values():  # compiles, and makes the optimizers' state
            run()
        gc.collect()
        memory = {name: peak_growth_mib(run) for name, run in sides.items() if name != "peer_with_old_pass"}
        seconds, metrics, peaks = {name: [] for name in sides}, {}, []
        for _ in range(FLAGS.rounds):
            peaks.append(matmul_peak.__wrapped__("float32"))
            for name, run in sides.items():
                start = time.perf_counter()
                result = run()
                seconds[name].append(time.perf_counter() - start)
                metrics = result or metrics
        speed = {name: round(useful / statistics.median(values), 1) for name, values in seconds.items()}
        flops, peak = metrics["flops"] / statistics.median(seconds["ours"]), statistics.median(peaks)
        line = {"workload": workload, **speed, "ratio": round(speed["ours"] / speed["peer"], 3)}
        line |= {"packing_efficiency": round(metrics["packing_efficiency"], 3)}
        line |= {"peak_gflops": round(peak / 1e9, 1)}
        line |= {"peak_share": round(flops / peak, 3)}
        line |= {f"memory_{name}_mib": round(value) for name, value in memory.items()}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app.run(main)
