"""The same tokens on one device, on eight (data x fsdp x tensor), and in two processes."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def start(mesh: str, *process: str, devices: int, weights: str = "") -> subprocess.Popen:
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    script = str(ROOT / "tests/rollout/decode_somewhere.py")
    return subprocess.Popen(
        [sys.executable, script, mesh, weights, *process], env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def digest(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return next(line for line in out.splitlines() if line.startswith("digest"))


@functools.cache
def on_one_device(weights: str = "") -> str:
    return digest(start("data=1", devices=1, weights=weights))


@pytest.mark.parametrize("mesh", ["data=2,fsdp=2,tensor=2", "fsdp=2,tensor=4"])
def test_eight_devices(mesh):
    assert digest(start(mesh, devices=8)) == on_one_device()


def test_eight_devices_with_weights_in_eight_bits():
    found = digest(start("data=2,fsdp=2,tensor=2", devices=8, weights="int8"))
    assert found == on_one_device("int8") != on_one_device()


def test_two_processes():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    both = [start("data=2,fsdp=2", str(i), "2", port, devices=2) for i in range(2)]
    assert [digest(process) for process in both] == [on_one_device()] * 2
