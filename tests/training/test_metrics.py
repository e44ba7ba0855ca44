import json
import resource
from contextlib import contextmanager

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from polaris_jax.training.metrics import History, MetricsLogger, read_metrics


def log(workdir, start, steps):
    workdir.mkdir(exist_ok=True)
    with MetricsLogger(workdir, "test", 4, start, ("reward",)) as logger:
        for step in steps:
            logger.write(step, {"reward": step / 10})
            logger.sample({"step": step, "response": "½ </b>"})
    return logger.history()


def in_tensorboard(workdir):
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return [(event.step, make_ndarray(event.tensor_proto).item()) for event in events.Tensors("reward")]


def test_metrics_are_in_jsonl_tensorboard_and_history(tmp_path):
    history = log(tmp_path, 0, [1, 2])
    assert history.frame().reward.to_dict() == {1: 0.1, 2: 0.2}
    assert read_metrics(tmp_path) == [{"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.2}]
    assert json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])["response"] == "½ </b>"
    assert in_tensorboard(tmp_path) == [(1, pytest.approx(0.1)), (2, pytest.approx(0.2))]


def test_killed_at_any_byte_it_goes_on_without_gap_or_double_step(tmp_path):
    """A run that was killed while it wrote ends in any part of a line; the checkpoint that it goes on from is older."""
    log(tmp_path, 0, [1, 2, 3, 4])
    names = ("metrics.jsonl", "samples.jsonl")
    whole = {name: (tmp_path / name).read_bytes() for name in names}
    two = len(b"".join(whole["metrics.jsonl"].splitlines(keepends=True)[:2]))
    for size in range(two, len(whole["metrics.jsonl"])):
        (tmp_path / "metrics.jsonl").write_bytes(whole["metrics.jsonl"][:size])
        with MetricsLogger(tmp_path, "test", 4, 2, ()) as logger:
            assert [row["step"] for row in logger.rows] == [1, 2]
        assert (tmp_path / "metrics.jsonl").read_bytes() == whole["metrics.jsonl"][:two]
    history = log(tmp_path, 2, [3, 4])
    assert [row["step"] for row in history.rows] == [1, 2, 3, 4]
    assert {name: (tmp_path / name).read_bytes() for name in names} == whole
    assert [step for step, _ in in_tensorboard(tmp_path)] == [1, 2, 3, 4]


def test_rows_that_are_gone_are_told(tmp_path, caplog):
    log(tmp_path, 0, [1, 2, 3])
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text.replace("2", "}"))
    log(tmp_path, 3, [4])
    assert "metrics.jsonl: holds 1 of the 3 steps before" in caplog.text


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"verdict/no_think_end": 1.0}, "step 1: no response has </think>"),
        ({"cut_off": 0.6}, "step 1: 60% of the responses were truncated at config.rollout.max_response_tokens"),
        ({"verdict/no_think_end": 0.9, "cut_off": 0.5}, ""),
    ],
)
def test_rewards_that_are_low_for_another_reason_are_told_once(tmp_path, caplog, metrics, words):
    with MetricsLogger(tmp_path, "test", 2, 0, ()) as logger:
        for step in (1, 2):
            logger.write(step, metrics)
    assert words in caplog.text
    assert len(caplog.messages) == bool(words)


@contextmanager
def full_disk(size):
    """No file of this process can grow beyond `size` bytes: as on a full disk, a write ends in the middle of a line."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of tensorboard's writer
def test_on_a_full_disk_rows_are_kept_and_written_when_there_is_room(tmp_path, caplog):
    log(tmp_path / "roomy", 0, range(1, 9))
    with MetricsLogger(tmp_path, "test", 8, 0, ()) as logger:
        for step in range(1, 9):
            with full_disk(100) if 2 <= step <= 6 else full_disk(resource.RLIM_INFINITY):
                logger.write(step, {"reward": step / 10})
                logger.sample({"step": step, "response": "½ </b>"})
                if step == 6:
                    assert (tmp_path / "metrics.jsonl").stat().st_size == 100  # within a line
                    with pytest.raises(OSError, match="File too large"):
                        logger.sync()
        logger.sync()
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "roomy" / name).read_bytes()
    assert in_tensorboard(tmp_path) == in_tensorboard(tmp_path / "roomy")
    assert caplog.text.count("metrics cannot be written") == 1


def test_plot_has_a_panel_for_each_metric_that_is_there(tmp_path):
    rows = [{"step": i, "reward": i / 20, "response_length": 2 * i, "update/entropy": 1 / i} for i in range(1, 21)]
    rows[4]["evaluation/some/where/avg@4"], rows[9]["evaluation/some/where/avg@4"] = 0.25, 0.5
    reward, accuracy, length, entropy, *_ = History(tuple(rows), tmp_path).plot().axes
    titles = [axis.get_title() for axis in (reward, accuracy, length, entropy)]
    assert titles == ["reward", "held-out accuracy", "response length", "entropy"]
    assert all(axis.get_ylabel() for axis in (reward, accuracy, length, entropy))
    assert [line.get_label() for line in reward.lines] == ["each step", "mean of 2 steps"]
    assert accuracy.lines[0].get_label() == "where"
    assert accuracy.lines[0].get_xydata().tolist() == [[5, 0.25], [10, 0.5]]
    for axis in (reward, accuracy):
        assert axis.get_ylim() == pytest.approx((0, 1), abs=0.03)


def test_a_reward_outside_of_0_to_1_is_seen(tmp_path):
    rows = tuple({"step": i, "reward": reward} for i, reward in enumerate((-0.5, 0.5, 1.5), 1))
    low, high = History(rows, tmp_path).plot(("reward",)).axes[0].get_ylim()
    assert low < -0.5
    assert high > 1.5
