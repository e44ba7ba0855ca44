"""`--help` of each script: at once, with typical command lines, and with where the config's keys are."""

import subprocess
import sys

import pytest

from tests.conftest import CONFIGS

MAINTAINERS = ("chaos", "demo", "house", "install_compilers", "test_versions")
EXPERIMENTS = CONFIGS.parent / "experiments"
SCRIPTS = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if path.stem not in MAINTAINERS)
SHOW_HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert not stop.code
print("imported:", *{"jax", "transformers", "pandas", "matplotlib"} & set(sys.modules))
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_command_lines_and_imports_nothing_that_takes_long(script):
    path = EXPERIMENTS / f"{script}.py"
    command = [sys.executable, "-c", SHOW_HELP, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CONFIGS.parent)
    assert done.returncode == 0, done.stderr
    text, _, imported = done.stdout.rpartition("imported:")
    assert not imported.strip()
    assert text.count("python experiments/") >= 2
    if "--config:" in text:
        assert str(CONFIGS / "base.py") in text
