"""Every notebook runs from top to bottom, with short settings."""

from pathlib import Path

import papermill
import pytest

from tests.conftest import SMALLER

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SMALL = {"rollout.prompts": 2, "rollout.samples": 4, "rollout.slots": 8, "evaluation.max_problems": 4}
SHORT = {
    "ablations": {
        "sft_steps": 4, "steps": [1, 1], "seeds": 1, "train_problems": 4, "held_out": 2, "processes": 1,
        "overrides": SMALL | {"difficulty.samples": 4, "search.problems": 2, "search.samples": 4},
    },
    "hf_roundtrip": {},
    "own_reward": {"sft_steps": 4, "rl_steps": 1, "overrides": SMALLER},
    "tiny_grpo": {"sft_steps": 4, "rl_steps": 4, "overrides": SMALLER | {"evaluation.samples": 4}},  # what other tests have compiled already
    "tour": {"sft_steps": 4, "samples": 4},
}
SLOW = ("ablations", "hf_roundtrip", "tour")


def notebooks():
    """Each notebook there is, so that one without settings fails."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        yield pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])


@pytest.mark.parametrize("path", notebooks())
def test_notebook_runs(path, tmp_path):
    if "import torch" in path.read_text(encoding="utf-8"):
        pytest.importorskip("torch")
    parameters = SHORT[path.stem] | {"workdir": str(tmp_path / "work")}
    papermill.execute_notebook(path, tmp_path / path.name, parameters, cwd=NOTEBOOKS, progress_bar=False)
