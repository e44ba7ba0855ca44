"""train.py and sft.py as a user runs them; what they compute is tested where it is."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("train.py", ["--config.rollout.smaples=3"], "samples"),
        ("sft.py", ["--config.sft.data=nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(script, flags, words, tmp_path):
    command = [sys.executable, f"experiments/{script}", "--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, cwd=ROOT)
    said = [line for line in done.stdout.splitlines() if line != "loading" and not line.startswith("memory: ")]
    assert (done.returncode, said) == (2, [])
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
