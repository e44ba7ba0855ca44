"""The gradient is the same on every mesh and on several hosts, of whole models and of adapters."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mesh_gradients.py")


def start(*arguments, devices):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check(process, meshes):
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert len(rows) == meshes
    for row in rows:
        assert row["gradient"] < 1e-5, row
        assert row["loss"] < 1e-5, row


@pytest.mark.slow
def test_eight_devices_in_every_split_give_the_gradient_of_one():
    check(start(devices=8), 21)


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [start(address, process, 2, devices=2) for process in range(2)]
    for process in processes:
        check(process, 4)
