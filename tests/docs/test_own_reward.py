"""The worked example of docs/own_reward.md runs as it stands."""

import re
from pathlib import Path

from polaris_jax.data import arithmetic
from tests.conftest import SMALLER

PAGE = Path(__file__).parents[2] / "docs" / "own_reward.md"


def test_the_example_runs_and_its_reward_says_what_it_should(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "runs").mkdir()
    (tmp_path / "configs").symlink_to(PAGE.parents[1] / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polaris_jax.runs.start.ARITHMETIC_PROBLEMS", 64)
    names = {"QUICK": SMALLER | {"training.steps": 1}}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(names["history"].rows) == 1

    # The reward itself, beside the package's own reading of traces.
    assert len(names["REWARD"].split("LINE = ")[1].strip().splitlines()) <= 15
    mine = {}
    exec(names["REWARD"], mine)
    chain = next(arithmetic.chains("train", seed=0))
    trace = chain.trace((1,) * len(chain.operations))
    slipped = trace.replace(f"is {chain.totals[1]}.", "is 99.", 1)
    for response in (trace, slipped, "nothing", trace + slipped):
        read = arithmetic.lines(response)
        assert mine["right_steps"](response, None) == (sum(right for _, right in read) / len(read) if read else 0)
    assert mine["right_steps"](trace, None) == 1 > mine["right_steps"](slipped, None)
