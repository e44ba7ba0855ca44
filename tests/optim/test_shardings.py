"""Where the arrays of an optimizer lie on 8 simulated devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from polaris_jax.optim.moments import block_axis
from polaris_jax.optim.optimizer import OPTIMIZERS

# Of each split parameter. Muon keeps two of the embedding and one of each of seven kernels.
MOMENTS = {"adamw": 2, "muon": 9 / 8, "lion": 1, "sgd": 1}


def printed(what):
    """What sharded_states.py tells of each optimizer and each way to keep its moments."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, str(Path(__file__).with_name("sharded_states.py")), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return {(row["name"], row["kind"]): row for row in map(json.loads, done.stdout.splitlines())}


def test_moments_lie_where_their_parameters_lie():
    found = printed("places")
    assert set(found) == {("adamw", "bfloat16"), ("adamw", "int8"), *((name, "float32") for name in OPTIMIZERS)}
    for (name, kind), row in found.items():
        params, split, scales = {path: place for path, *place in row["params"]}, 0, 0
        for path, *place in row["inner"]:
            own = next((of for of_path, of in params.items() if of_path in path), None)
            if own is None:
                assert not any(place[1]), f"{path} is no parameter's"
            elif path.endswith(".scales"):
                expected = list(own[1])
                expected[block_axis(len(expected))] = None
                assert place[1] == expected, path
                scales += 1
            else:
                assert place == own, path
                split += any(place[1])
        assert split == MOMENTS[name] * sum(any(axes) for _, axes, _ in params.values())
        assert scales == (2 * len(params) if kind == "int8" else 0)


@pytest.mark.slow
def test_eight_devices_update_as_one_does():
    for (name, kind), row in printed("updates").items():
        assert row["apart"] < 1e-5, (name, kind)  # of updates of 1e-2
