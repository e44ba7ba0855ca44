"""The same update in transformers and torch, in a process of its own, whose device memory is free again at its end.

`python -m polaris_jax.gpu_check.peer SIZE` prints a JSON line for each row length. SIZE: of `SIZES`; "": 4b where torch
sees a GPU.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from polaris_jax.gpu_check.sizes import SIZES
from polaris_jax.hf.config import config_to_hf

REPEATS, CHUNK = 3, 2048  # updates timed after one to warm up; tokens whose logits are in memory at once


def measure(size: str, limit_s: float) -> Iterator[tuple[str, dict[str, Any], str]]:
    """For each row length of a size the name of its check, what was measured, and the error, in one line."""
    command = [sys.executable, "-m", "polaris_jax.gpu_check.peer", size]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}  # the device is torch's
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit_s)
        out, error = done.stdout, " ".join(done.stderr.splitlines()[-1:])[:300] if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        out, error = (late.stdout or b"").decode(), f"not done after {limit_s:.0f} s"
    for row in map(json.loads, out.splitlines()):
        yield f"peer/{row.pop('length')}", row, row.pop("error", "")
    if error:
        yield "peer", {}, error


def main(size: str) -> None:
    """Prints the JSON lines."""
    import torch  # an optional package: its absence is told by this process
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = SIZES[size or ("4b" if device == "cuda" else "tiny")]
    shape = sizes.model()
    config = transformers.AutoConfig.for_model(**config_to_hf(shape, shape.dtype))
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, shape.dtype), attn_implementation="sdpa"
        )
    model.train()
    if shape.remat != "none":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device == "cuda")
    for length in sizes.updates:
        try:
            rows = sizes.rows(length)
            tokens = torch.randint(shape.vocab_size, (rows, length + 1), device=device)
            seconds = _seconds(model, optimizer, tokens)
            row = {"rows": rows, "tokens_per_s": rows * length / seconds}
            if device == "cuda":
                row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        except torch.OutOfMemoryError as error:
            row = {"error": " ".join(str(error).split())[:300]}
        print(json.dumps({"length": length} | row), flush=True)


def _seconds(model, optimizer, tokens) -> float:
    """Of one update of all rows: gradients of the mean log-prob, in chunks, clipped, and a step of AdamW."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def logprobs(hidden, targets):
        logits = model.lm_head(hidden).float()
        return torch.log_softmax(logits, -1).gather(-1, targets[:, None]).sum()

    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        hidden = model.model(tokens[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
        chunks = zip(hidden.split(CHUNK), tokens[:, 1:].flatten().split(CHUNK), strict=True)
        total = sum(checkpoint(logprobs, *chunk, use_reentrant=False) for chunk in chunks)
        (-total / len(hidden)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if tokens.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main(*sys.argv[1:])
