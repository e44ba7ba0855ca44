"""A small part of `make chaos`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_three_kills_leave_no_trace(tmp_path):
    script = ROOT / "experiments" / "chaos.py"
    command = [sys.executable, script, f"--workdir={tmp_path}", "--kinds=kill", "--kills=3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "difficulty" in done.stdout
