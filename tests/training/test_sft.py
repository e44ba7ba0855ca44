import json

import jax
import numpy as np
import pytest

from polaris_jax import hf
from polaris_jax.errors import UserError
from polaris_jax.training import sft


def test_sft_learns_and_resumes_to_the_bit(tiny_config, tmp_path, monkeypatch):
    unbroken = sft.run(tiny_config(), tmp_path / "unbroken")
    assert unbroken.rows[-1]["loss"] < unbroken.rows[0]["loss"]
    draw, count = sft.draw, iter(range(100))

    def killed_in_the_fourth_step(*args, **settings):
        if next(count) == 3:
            raise KeyboardInterrupt
        return draw(*args, **settings)

    monkeypatch.setattr(sft, "draw", killed_in_the_fourth_step)
    with pytest.raises(KeyboardInterrupt):
        sft.run(tiny_config(), tmp_path / "broken")
    resumed = sft.run(tiny_config(), tmp_path / "broken")
    assert [row["loss"] for row in resumed.rows] == [row["loss"] for row in unbroken.rows]
    left, right = (hf.load(tmp_path / name)[1] for name in ("broken", "unbroken"))
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_file_of_conversations_is_learnt(tiny_config, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "Start with 37, first +5"}, {"role": "assistant", "content": "42"}]}
    ]
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 8))
    history = sft.run(tiny_config(**{"sft.data": str(path)}), tmp_path / "run")
    assert len(history.rows) == 4
    with pytest.raises(UserError, match=r"config.sft.batch_size: 9 an update, but there are 8 conversations"):
        sft.run(tiny_config(**{"sft.data": str(path), "sft.batch_size": 9}), tmp_path / "other")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"sft.data": ""}, "config.sft.data: empty"),
        ({"sft.data": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"updates.row_lengths": (32,)}, "config.updates.row_lengths: the longest is 32"),
    ],
)
def test_bad_input_is_refused_in_words_before_anything_is_written(tiny_config, tmp_path, overrides, words):
    with pytest.raises(UserError, match=words):
        sft.run(tiny_config(**overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
