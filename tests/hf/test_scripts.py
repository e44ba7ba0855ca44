"""import_hf.py and export_hf.py as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from polaris_jax import hf

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def run(script, **flags):
    """Runs a script in a process of its own."""
    command = [sys.executable, EXPERIMENTS / script, *(f"--{name}={value}" for name, value in flags.items())]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_there_and_back(qwen3, tmp_path):
    done = run("import_hf.py", source=qwen3, target=tmp_path / "ours")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{hf.load(qwen3)[0].num_parameters:,} parameters" in done.stdout
    done = run("export_hf.py", source=tmp_path / "ours", target=tmp_path / "theirs", yarn_factor=1.5)
    assert (done.returncode, done.stderr) == (0, "")
    assert hf.load(tmp_path / "theirs")[0].yarn.attention_factor == 1.0


@pytest.mark.slow
def test_bad_input_is_one_line_and_leaves_nothing(qwen3, copy_of, tmp_path):
    damaged = copy_of(qwen3)
    (damaged / "model.safetensors").write_bytes(b"")
    done = run("import_hf.py", source=damaged, target=tmp_path / "target" / "ours")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {damaged}/model.safetensors: not a whole safetensors file")
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "target").iterdir()) == []
