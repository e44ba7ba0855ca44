"""What needs a process of its own: eight devices, and the memory of a load and a save."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import assert_same_bytes, save_checkpoint, tiny_config

MANY_DEVICES = """
import sys
import jax
from polaris_jax import hf
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.errors import UserError

source, target, odd = sys.argv[1:]
mesh = make_mesh({"fsdp": 4, "tensor": 2})
config, params = hf.load(source, mesh=mesh)
kernel = params["layers"]["mlp"]["up"]["kernel"]
assert len(kernel.sharding.device_set) == 8
assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 8, 12)}
hf.save(params, config, target, max_shard_bytes=5000)
try:
    hf.load(odd, mesh=mesh)
except UserError as error:
    print(error)
"""


def run_python(*arguments, **environment) -> str:
    """The output of a Python process, which must succeed."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_parameters_on_eight_devices(qwen3, tmp_path):
    changes = dict(hidden_size=32, intermediate_size=24, vocab_size=40)
    save_checkpoint(tmp_path / "theirs", tiny_config("qwen3", **changes), dtype="bfloat16")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    output = run_python("-c", MANY_DEVICES, tmp_path / "theirs", tmp_path / "ours", qwen3, **flags)
    assert output == "parameter embedding of shape [37, 30] cannot be split over fsdp=4, tensor=2\n"
    assert_same_bytes(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.slow
def test_memory_is_about_one_copy_of_the_weights(tmp_path):
    sizes = dict(vocab_size=32_000, hidden_size=512, intermediate_size=1536, num_hidden_layers=24, head_dim=64)
    save_checkpoint(tmp_path / "theirs", tiny_config("qwen3", **sizes), dtype="bfloat16")
    output = run_python(Path(__file__).parent / "measure_memory.py", tmp_path / "theirs", tmp_path / "ours")
    print(output)
    used = json.loads(output)
    assert used["copy"] > 250
    assert used["loading"] < 1.35 * used["copy"]  # the copy, and one parameter on its way
    assert used["saving"] < 0.35 * used["copy"]
    assert_same_bytes(tmp_path / "theirs", tmp_path / "ours")
