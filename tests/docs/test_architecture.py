"""The worked examples of docs/architecture.md run as they stand."""

import re
from pathlib import Path

from polaris_jax.rl.losses import LOSSES
from polaris_jax.training import loop
from tests.conftest import SMALLER

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_examples_of_where_to_change_what(tmp_path, monkeypatch):
    examples = PAGE.read_text(encoding="utf-8").split("## Where to change what")[1]
    blocks = re.findall(r"```python\n(.*?)```", examples, re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "runs").mkdir()
    (tmp_path / "configs").symlink_to(PAGE.parents[1] / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polaris_jax.runs.start.ARITHMETIC_PROBLEMS", 64)
    monkeypatch.setattr(loop, "verifier_pool", loop.verifier_pool)
    monkeypatch.setitem(LOSSES, "reinforce", None)  # forgotten at the end, whatever the page puts there
    names = {"QUICK": SMALLER | {"training.steps": 1}}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"reinforce", "mine", "mine.jsonl", "short"}
    assert len(names["history"].rows) == 1
