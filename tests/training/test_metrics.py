import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from polaris_jax.training.metrics import History, MetricsLogger, read_metrics


def log(workdir, start, steps):
    with MetricsLogger(workdir, "test", 4, start, ("reward",)) as logger:
        for step in steps:
            logger.write(step, {"reward": step / 10})
            logger.sample({"step": step, "response": "½ </b>"})
    return logger.history()


def test_metrics_are_in_jsonl_tensorboard_and_history(tmp_path):
    history = log(tmp_path, 0, [1, 2])
    assert history.frame().reward.to_dict() == {1: 0.1, 2: 0.2}
    assert read_metrics(tmp_path) == [{"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.2}]
    assert json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])["response"] == "½ </b>"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, make_ndarray(event.tensor_proto).item()) for event in events.Tensors("reward")] == [
        (1, pytest.approx(0.1)),
        (2, pytest.approx(0.2)),
    ]


def test_resuming_drops_later_rows_and_an_unfinished_line(tmp_path):
    log(tmp_path, 0, [1, 2, 3])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    history = log(tmp_path, 2, [3, 4])
    assert [row["step"] for row in history.rows] == [1, 2, 3, 4]
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    samples = [json.loads(line)["step"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert samples == [1, 2, 3, 4]


def test_plot_has_a_panel_for_each_metric(tmp_path):
    history = History(tuple({"step": i, "reward": i, "response_length": 2 * i} for i in range(1, 4)), tmp_path)
    assert [axis.get_title() for axis in history.plot().axes] == ["reward", "response length"]
