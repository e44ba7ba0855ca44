"""Every notebook runs from top to bottom, with short settings."""

from pathlib import Path

import papermill
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SMALL = {"rollout.prompts": 2, "rollout.samples": 4, "rollout.slots": 8, "evaluation.max_problems": 4}
SHORT = {"tiny_grpo": {"sft_steps": 4, "rl_steps": 2, "overrides": SMALL}}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    parameters = SHORT[path.stem] | {"workdir": str(tmp_path / "work")}
    papermill.execute_notebook(path, tmp_path / path.name, parameters, cwd=NOTEBOOKS, progress_bar=False)
