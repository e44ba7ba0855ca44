"""Four steps on three devices, of which one samples ahead. Run by test_next_batch.py.

Usage: next_batch_program.py WORKDIR KILL. Before each update it writes a row to WORKDIR.jsonl: the largest distance of
the recorded log-probs from those of the parameters now (`now`) and one step before (`before`), and the largest ratio
between these two on the tokens to be learnt (`ratio_max`). KILL: the update that Ctrl-C ends; 0: none.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from conftest import EvenLengthPool, smaller_config

from polaris_jax.runs import start
from polaris_jax.runs.compilation import enable_compilation_cache
from polaris_jax.sharding.rows import put_rows
from polaris_jax.training import loop
from polaris_jax.training.update import make_logprobs

workdir, kill = Path(sys.argv[1]), int(sys.argv[2])
enable_compilation_cache(workdir.parent / "compiled")
start.ARITHMETIC_PROBLEMS = 64
loop.verifier_pool = lambda config: EvenLengthPool()
make_update, older = loop.make_update, []


def watched(model, stage, mesh, *rest):
    update, logprobs = make_update(model, stage, mesh, *rest), jax.jit(make_logprobs(model, mesh))

    def look(state, batches, temperature):
        if int(state.step) + 1 == kill:
            raise KeyboardInterrupt
        newer = jax.tree.map(np.array, state.params)
        found = []
        for batch in batches:
            rows = put_rows(batch, mesh)
            now, before = (logprobs(params, rows, temperature)[0] for params in (newer, (older or [newer])[-1]))
            found.append(np.stack([now, before, rows.behaviour_logprobs])[:, np.asarray(rows.mask) > 0])
        now, before, recorded = np.concatenate(found, axis=1)
        row = {"now": abs(now - recorded).max(), "before": abs(before - recorded).max()}
        row |= {"ratio_max": np.exp(now - before).max()}
        with workdir.with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps({name: float(value) for name, value in row.items()}) + "\n")
        older.append(newer)
        return update(state, batches, temperature)

    return look


loop.make_update = watched
loop.run(smaller_config(**{"rollout.devices": 1, "training.checkpoint_every": 2}), workdir)
