"""Which check comes next, what is kept between starts, and, slow, every check of the tiny size on a CPU."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from polaris_jax.errors import UserError
from polaris_jax.gpu_check import checks, runner
from polaris_jax.gpu_check.report import failed, longest_response, tables
from polaris_jax.gpu_check.runner import CheckResults, Result, next_length
from polaris_jax.gpu_check.sizes import SIZES

TINY = SIZES["tiny"]
CPU = {"platform": "cpu", "device": "cpu", "devices": 1, "jax": "0"}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_search_ends_within_one_step_of_the_longest_that_trains(size):
    for threshold in range(0, size.longest + 2 * size.step, size.step // 2):
        trained = {}
        while length := next_length(size, trained):
            assert length not in trained
            assert 0 < length <= size.longest
            trained[length] = length <= threshold
        found = max((length for length, ok in trained.items() if ok), default=0)
        assert found <= threshold
        assert found == size.longest or threshold < found + size.step
        assert len(trained) <= 12


@pytest.fixture
def started(monkeypatch):
    """Names of the checks that were started; none is really run, each of them takes a second."""
    names, clock = [], [0.0]

    def start(check, size, workdir):
        clock[0] += 1
        if check == "machine":
            return Result(check, "ok", 1.0, dict(CPU), "")
        names.append(check)
        length = check.partition("/")[2]
        fits = not check.startswith("longest") or int(length) < TINY.longest
        values = {"response_tokens": int(length) - 31} if fits and check.startswith("longest") else {}
        return Result(check, "ok" if fits else "does not fit", 1.0, values, "")

    monkeypatch.setattr(runner, "start", start)
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return names


def test_a_second_start_goes_on_and_a_budget_is_kept(started, tmp_path):
    said = []
    while not (outcome := runner.run(tmp_path, budget_s=TINY.limit_s + 4, announce=said.append)).complete:
        assert len(started) <= 100
    assert "no accelerator" in said[0]
    assert len(started) == len(set(started)) == len(outcome.results)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines == [{"size": "tiny", **CPU}, *map(asdict, outcome.results)]
    assert not failed(outcome)
    assert longest_response(outcome) == "longest response that trains: 225 tokens"
    assert [table.title for table in tables(outcome)]
    before = list(started)
    assert runner.run(tmp_path).complete
    assert started == before


def test_a_start_does_no_check_that_might_pass_the_budget(started, tmp_path):
    runner.run(tmp_path, "tiny", TINY.limit_s + 3.5)
    assert len(started) == 3  # the machine's took a second, too
    with pytest.raises(UserError, match=r"--budget_s: a check of size tiny may take 120 s, found 60"):
        runner.run(tmp_path, "tiny", 60)


def test_results_of_another_machine_are_not_mixed(started, tmp_path, monkeypatch):
    runner.run(tmp_path, "tiny", TINY.limit_s + 3)
    monkeypatch.setitem(CPU, "device", "another")
    with pytest.raises(UserError, match="device 'cpu'"):
        runner.run(tmp_path, "tiny")
    with pytest.raises(UserError, match="--size: expected one of tiny, 4b, found 'huge'"):
        runner.run(tmp_path, "huge")


def test_too_little_memory_is_a_finding_and_other_errors_are_not(monkeypatch):
    def hungry(size, argument):
        return True, {"sum": float(jnp.zeros(2 ** int(argument), jnp.int8).sum())}

    monkeypatch.setitem(checks.CHECKS, "hungry", hungry)
    assert checks.attempt("hungry/3", "tiny") == {"status": "ok", "values": {"sum": 0.0}, "note": ""}
    found = checks.attempt("hungry/50", "tiny")
    assert found["status"] == "does not fit"
    assert "memory" in found["note"].lower()
    with pytest.raises(ValueError, match="invalid literal"):
        checks.attempt("hungry/much", "tiny")


def test_a_check_that_breaks_or_does_not_end_is_an_error(tmp_path, monkeypatch):
    broken = runner.start("kernel/none", "tiny", tmp_path)
    assert broken.status == "error"
    assert "KeyError" in (tmp_path / "logs" / "kernel-none.txt").read_text()
    assert failed(CheckResults(CPU, "tiny", [broken], True)) == [broken]
    monkeypatch.setattr(runner, "SIZES", {"tiny": replace(TINY, limit_s=0.2)})
    assert runner.start("speed", "tiny", tmp_path).note == "not done after 0 s"


@pytest.mark.parametrize(
    ("check", "status", "wrong"),
    [
        ("kernel/gpu-decode", "ok", False),
        ("kernel/gpu-decode", "failed", True),
        ("kernel/gpu-decode", "does not fit", True),
        ("rollout/32768x128", "does not fit", False),
        ("step", "error", True),
    ],
)
def test_what_does_not_fit_is_a_failure_of_kernels_alone(check, status, wrong):
    result = Result(check, status, 1.0, {}, "")
    assert failed(CheckResults(CPU, "4b", [result], True)) == [result] * wrong


@pytest.mark.slow
def test_all_checks_hold_on_a_cpu(tmp_path):
    script = Path(__file__).parents[2] / "experiments" / "gpu_check.py"
    command = [sys.executable, script, f"--workdir={tmp_path}"]
    first = subprocess.run([*command, f"--budget_s={TINY.limit_s + 60}"], capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "since JAX sees no accelerator" in first.stdout
    assert "the same command goes on" in first.stdout
    done = (tmp_path / "results.jsonl").read_bytes()
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert (tmp_path / "results.jsonl").read_bytes().startswith(done)
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()[1:]]
    assert {result["status"] for result in results} == {"ok"}
    assert len({result["check"] for result in results}) == len(results)
    assert f"longest response that trains: {TINY.longest + 1 - checks.PROMPT} tokens or more" in second.stdout
