"""Which check comes next, what is kept between starts, and every check of the tiny size on a CPU."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from polaris_jax.errors import UserError
from polaris_jax.gpu_check import checks, peer, runner
from polaris_jax.gpu_check.report import failed, longest_response, table
from polaris_jax.gpu_check.runner import CheckResults, Options, Result, next_check, next_length
from polaris_jax.gpu_check.sizes import SIZES

ROOT = Path(__file__).parents[2]
TINY = SIZES["tiny"]
MACHINE = {"platform": "cpu", "device": "cpu", "devices": 1, "jax": "0"}


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


def test_the_most_important_comes_first():
    results = []
    while check := next_check(SIZES["4b"], "gpu", Options(profile=True), results):
        results.append(Result(check, "ok", 1.0, {}, ""))
    names = [result.check for result in results]
    assert len(names) == len(set(names))
    assert names[:13] == [
        "ceilings", "kernel/gpu-decode", "kernel/gpu-training",
        "rollout/1024x128", "rollout/8192x32", "rollout/32768x8", "gap/bfloat16", "gap/float16",
        "update/4096", "update/16384", "apply", "step", "profile/decode",
    ]  # fmt: skip
    assert SIZES["4b"].heads[0] == (32, 8, 128)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs with checks that measure nothing; the names of those that were started are in `run.started`."""

    def check(kind):
        def measure(bench, argument):
            start.started.append(f"{kind}/{argument}".strip("/"))
            if kind == "longest" and int(argument) > 128:
                raise MemoryError("too long")
            return True, {"response_tokens": int(argument) - 31} if kind == "longest" else {}

        return measure

    for kind in checks.CHECKS:
        monkeypatch.setitem(checks.CHECKS, kind, check(kind))

    def start(**options):
        return runner.run(tmp_path, Options(**options), start.said.append, lambda outcome: 0)

    start.started, start.said = [], []
    return start


def test_a_second_start_does_what_is_left(run, tmp_path, monkeypatch):
    ended = KeyboardInterrupt()
    monkeypatch.setitem(checks.CHECKS, "gap", lambda bench, argument: (_ for _ in ()).throw(ended))
    with pytest.raises(KeyboardInterrupt):
        run()
    assert "no accelerator" in run.said[0]
    monkeypatch.setitem(checks.CHECKS, "gap", lambda bench, argument: (argument == "bfloat16", {}))
    outcome = run()
    assert outcome.complete
    assert len(run.started) == len(set(run.started)) == len(outcome.results) - 2
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines == [{"size": "tiny", **outcome.machine}, *map(asdict, outcome.results)]
    assert [result.check for result in failed(outcome)] == ["gap/float16"]
    assert longest_response(outcome) == "longest response that trains: 97 tokens or more"
    assert table(outcome).row_count == len(outcome.results)
    before = list(run.started)
    assert run().complete
    assert run.started == before


def test_no_check_begins_behind_the_budget(run, monkeypatch):
    monkeypatch.setitem(runner.SIZES, "tiny", replace(TINY, least_s=30))
    assert not run(budget_s=29).complete
    assert not run.started
    assert run(budget_s=600).complete


@pytest.mark.slow
def test_results_of_another_machine_are_not_mixed(run, monkeypatch):
    run()
    monkeypatch.setattr(jax, "__version__", "another")
    with pytest.raises(UserError, match="jax"):
        run()
    with pytest.raises(UserError, match="--size: expected one of tiny, 4b, found 'huge'"):
        run(size="huge")


def test_what_fails_is_told_in_one_line_and_the_rest_follows(run, tmp_path, monkeypatch):
    def broken(bench, argument):
        raise ValueError("a reason\nin two lines")

    monkeypatch.setitem(checks.CHECKS, "kernel", broken)
    monkeypatch.setitem(checks.CHECKS, "apply", lambda bench, argument: (True, {"sum": float(jnp.zeros(2**50).sum())}))
    outcome = run()
    found = {result.check: result for result in outcome.results}
    assert outcome.complete
    assert found["kernel/gpu-decode"].status == "error"
    assert found["kernel/gpu-decode"].note == "ValueError: a reason in two lines"
    assert "in two lines" in (tmp_path / "logs" / "kernel-gpu-decode.txt").read_text()
    assert found["apply"].status == "does not fit"
    assert "memory" in found["apply"].note.lower()
    assert {result.check for result in failed(outcome)} == {name for name in found if name.startswith("kernel/")}


def test_where_the_device_answers_no_more_the_process_ends(run, monkeypatch):
    monkeypatch.setitem(checks.CHECKS, "rollout", lambda bench, argument: 1 / 0)
    monkeypatch.setattr(runner, "_answers", lambda device: False)
    outcome = run()
    assert not outcome.complete
    assert outcome.results[-1].note.startswith("ZeroDivisionError")


HANGS = """
import sys, time
from dataclasses import replace
from polaris_jax.gpu_check import checks, runner
for kind in checks.CHECKS:
    checks.CHECKS[kind] = lambda bench, argument: (True, {})
checks.CHECKS["ceilings"] = lambda bench, argument: time.sleep(600)
runner.SIZES["tiny"] = replace(runner.SIZES["tiny"], limit_s=0.5)
outcome = runner.run(sys.argv[1], runner.Options("tiny"), print, lambda outcome: 3)
print("complete", outcome.complete)
"""


@pytest.mark.slow
def test_a_check_that_does_not_end_is_passed_over_by_the_next_start(tmp_path):
    command = [sys.executable, "-c", HANGS, tmp_path]
    first = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert first.returncode == 3, first.stderr
    assert "ceilings: not done after 0 s; the same command resumes" in first.stdout
    assert "complete True" in subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.parametrize(
    ("check", "status", "wrong"),
    [
        ("kernel/gpu-decode", "ok", False),
        ("kernel/gpu-decode", "failed", True),
        ("heads/gpu-decode", "does not fit", True),
        ("rollout/32768x128", "does not fit", False),
        ("peer", "skipped", False),
        ("step", "error", True),
    ],
)
def test_what_does_not_fit_is_a_failure_of_kernels_alone(check, status, wrong):
    result = Result(check, status, 1.0, {}, "")
    assert failed(CheckResults(MACHINE, "4b", [result], True)) == [result] * wrong


@pytest.mark.slow
def test_without_torch_the_peer_is_skipped(run, monkeypatch):
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    result = run(peer=True).results[0]
    assert (result.check, result.status, result.note) == ("peer", "skipped", "not installed: torch, transformers")


def test_a_peer_that_breaks_is_told_in_one_line():
    ((check, values, error),) = peer.measure("none", 60)
    assert (check, values) == ("peer", {})
    assert "KeyError: 'none'" in error or "torch" in error


@pytest.mark.slow
def test_all_checks_hold_on_a_cpu(tmp_path):
    pytest.importorskip("torch")
    script = ROOT / "experiments" / "gpu_check.py"
    command = [sys.executable, script, f"--workdir={tmp_path}", "--size=tiny", "--peer", "--profile"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "since JAX sees no accelerator" in done.stdout
    assert "longest response that trains: 97 tokens or more" in done.stdout
    found = {r["check"]: r for r in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines()[1:])}
    assert {result["status"] for result in found.values()} == {"ok"}
    values = {check: result["values"] for check, result in found.items()}
    for length in TINY.updates:
        ours, peers = values[f"update/{length}"], values[f"peer/{length}"]
        assert ours["of_peer"] == pytest.approx(ours["tokens_per_s"] / peers["tokens_per_s"])
        assert ours["of_product"] == pytest.approx(ours["tflops"] / values["ceilings"]["float32_tflops"])
    assert all(values[f"rollout/{context}x{slots}"]["of_copy"] > 0 for context, slots in TINY.rollouts)
    assert values["apply"]["ms"] > 0
    assert "jit_decode" in (tmp_path / "profile" / "decode.txt").read_text()
    profile = (tmp_path / "profile" / "update.txt").read_text()
    assert "jit_accumulate" in profile
    assert "jit_apply" in profile
