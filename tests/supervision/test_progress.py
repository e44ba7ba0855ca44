"""What a job shows of itself: what is done, how fast, how long it will take, and that something is being compiled."""

import io
import itertools
import re
import threading
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from polaris_jax import supervision
from polaris_jax.supervision import progress


@pytest.fixture
def at(monkeypatch):
    """at(seconds) sets the clock that progress looks at."""
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return lambda seconds: now.__setitem__(0, seconds)


@pytest.mark.parametrize(
    ("done", "seconds", "words"),
    [
        (0, 10, "0 of 1,200 rollouts"),
        (40, 10, "40 of 1,200 rollouts, 4.0/s, 4:50 left"),
        (1, 10, "1 of 1,200 rollouts, 6.0/min, 3:19:50 left"),
        (1200, 60, "1,200 of 1,200 rollouts, 20.0/s, 0:00 left"),
    ],
)
def test_a_count_tells_its_rate_and_the_time_that_is_left(at, done, seconds, words):
    shown = progress.Shown("title")
    shown.heard("rollouts", 0, 1200)
    at(seconds)
    shown.heard("rollouts", done, 1200)
    assert shown.text().startswith(f"title {progress.clock(seconds)}  {words}; ")


def test_steps_stand_before_their_parts_which_begin_anew_with_each_step(at):
    shown = progress.Shown("GRPO")
    assert "loading" in shown.text()
    for step in range(2):
        at(100 * step)
        shown.heard("steps", step, 4)
        shown.heard("rollouts", 0, 8)
        at(100 * step + 50)
        shown.heard("rollouts", 4, 8)
    assert "  1 of 4 steps, 0.4/min, 7:30 left; 4 of 8 rollouts, 4.8/min, 0:50 left; " in shown.text()
    shown.heard("checkpoint")
    assert "steps, 0.4/min, 7:30 left; checkpoint; " in shown.text()


def test_what_is_resumed_does_not_count_for_the_rate(at):
    shown = progress.Shown("evaluation")
    shown.heard("responses judged", 90, 100)
    at(10)
    shown.heard("responses judged", 95, 100)
    assert "95 of 100 responses judged, 30.0/min, 0:10 left" in shown.text()


def test_a_compilation_is_named_with_its_seconds(at, monkeypatch):
    monkeypatch.setattr(progress, "compiling", lambda: "decode")
    shown = progress.Shown("GRPO")
    assert "compiling" not in shown.text()
    at(12)
    assert "compiling decode (first time, 12 s so far)" in shown.text()


def test_the_compiler_is_seen_in_any_thread_with_its_programs_name():
    from jax._src import compiler

    assert supervision.watchdog.compiling() is None
    inside, leave = threading.Event(), threading.Event()
    code = "def compile(module_name):\n    inside.set()\n    leave.wait()"
    names = {"inside": inside, "leave": leave}
    exec(compile(code, compiler.__file__, "exec"), names)
    thread = threading.Thread(target=names["compile"], args=["jit__decode"])
    thread.start()
    inside.wait()
    assert supervision.watchdog.compiling() == "decode"
    leave.set()
    thread.join()


def test_lines_come_soon_and_then_at_a_bounded_pace(monkeypatch, capsys):
    monkeypatch.setattr(progress, "TICK_S", 0.01)
    monkeypatch.setattr(progress, "FIRST_S", 0.05)
    monkeypatch.setattr(progress, "EVERY_S", 0.2)
    with supervision.display("GRPO"):
        for number in itertools.takewhile(lambda n: n < 50, itertools.count()):
            supervision.heartbeat("rollouts", number, 50)
            time.sleep(0.01)
    supervision.heartbeat("rollouts", 50, 50)
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 4
    for line in lines:
        assert re.fullmatch(r"GRPO 0:0\d  \d+ of 50 rollouts, [\d.]+/s, 0:0\d left; [\d.]+ GiB", line)


def test_a_short_job_prints_nothing(capsys):
    with supervision.display("GRPO"):
        supervision.heartbeat("rollouts", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_memory_is_this_process_where_no_device_has_its_own():
    assert 0 < float(progress.memory().removesuffix(" GiB")) < 1000


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([0.0], "▁"),
        ([3.0, 3.0], "▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([1.0, -1.0], "█▁"),
        ([0.0] * 60 + [1.0] * 60, "▁" * 20 + "█" * 20),
    ],
)
def test_a_curve_spans_its_lowest_and_highest_value_and_is_no_wider_than_its_place(values, bars):
    assert progress.sparkline(values) == bars


def test_the_live_view_shows_curves_of_the_run_it_belongs_to(monkeypatch):
    monkeypatch.setattr(progress, "TICK_S", 0.01)
    screen = io.StringIO()
    make = lambda **settings: Console(file=screen, force_terminal=True, width=120, **settings)  # noqa: E731
    monkeypatch.setattr(progress, "Console", make)
    progress.show_metrics({"reward": 9.0})  # outside of any display
    with supervision.display("GRPO"):
        supervision.heartbeat("steps", 1, 4)
        for reward in (0.25, float("nan"), 0.5):
            progress.show_metrics({"reward": reward, "response_length": 40.0})
        deadline = time.monotonic() + 10
        while "response length" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    (line,) = {line for line in re.split(r"[\r\n]", screen.getvalue()) if "reward" in line and "▁█" in line}
    assert re.search(r"▁█\s+0.25\s+0.5\s+0.5", line)
