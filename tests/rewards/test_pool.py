"""Workers may be slow, greedy or dead: every case gets its verdict, and the right one."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polaris_jax.rewards import Reason, Verdict, VerifierPool, process, verify

RIGHT = "<think>\n</think>\\boxed{\\frac{1}{2}}"


def boxed(content):
    return f"</think>\\boxed{{{content}}}"


STAND_IN = """
import sys
from polaris_jax.rewards import worker
def judge(box, golds):
    if box == "sleep":
        import time
        while True: time.sleep(1)
    if box == "slow":
        import time; time.sleep(0.3)
    if box == "hang":
        pow(7, 10**9)
    if box == "swallow":
        while True:
            try:
                while True: pass
            except BaseException: pass
    if box == "eat":
        bytearray(1 << 30)
    if box == "die":
        import os; os._exit(1)
    return worker.Reason.EQUAL if box in golds else worker.Reason.UNEQUAL
worker.judge = judge
worker.main(float(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.fixture
def misbehaving(monkeypatch):
    """A pool of one worker that sleeps, hangs, swallows, eats memory or dies where the box says so."""
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", STAND_IN))
    with VerifierPool(1, timeout_s=1.0, memory_bytes=256 << 20) as made:
        assert made.submit(boxed("up"), "up").result().correct
        yield made


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ("sleep", Reason.TIMED_OUT),
        ("hang", Reason.TIMED_OUT),
        ("swallow", Reason.TIMED_OUT),
        ("eat", Reason.OVER_MEMORY),
        ("die", Reason.WORKER_DIED),
    ],
)
def test_a_bad_case_gets_its_reason_and_harms_no_other(misbehaving, box, reason):
    bad = misbehaving.submit(boxed(box), "1")
    behind = [misbehaving.submit(boxed(f"x{k}"), f"x{k}") for k in range(5)]
    assert bad.result() == Verdict(False, reason)
    assert all(future.result() == Verdict(True, Reason.EQUAL) for future in behind)


def test_timeout_is_hard(misbehaving):
    for box in ("hang", "swallow"):
        misbehaving.submit(boxed("up"), "up").result()
        started = time.monotonic()
        misbehaving.submit(boxed(box), "1").result()
        assert time.monotonic() - started < 1.0 + 2.0  # what a busy machine takes to kill and to answer


def test_a_case_that_kills_its_worker_is_tried_twice(misbehaving, monkeypatch):
    asked = []
    ask = process.WorkerProcess.ask

    def count(self, request, timeout_s):
        asked.append(request)
        return ask(self, request, timeout_s)

    monkeypatch.setattr(process.WorkerProcess, "ask", count)
    misbehaving.submit(boxed("die"), "1").result()
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("response", "answer", "reason"),
    [
        ("\\boxed{1}", "1", Reason.NO_THINK_END),
        ("</think> 1", "1", Reason.NO_BOX),
        (boxed(""), "1", Reason.UNPARSABLE),
        (boxed("\\frac{1}"), "1", Reason.UNPARSABLE),
        (boxed("1"), None, Reason.UNPARSABLE),
        (boxed("1"), "2", Reason.UNEQUAL),
        (boxed("1"), ["2", 1.0], Reason.EQUAL),
    ],
)
def test_reasons(shared, response, answer, reason):
    assert shared.submit(response, answer).result() == Verdict(reason is Reason.EQUAL, reason)


@pytest.fixture(scope="module")
def shared():
    with VerifierPool(2) as made:
        yield made


def test_models_that_do_not_think():
    with VerifierPool(1, require_think=False) as made:
        assert made.submit("\\boxed{1}", 1).result().correct


def test_workers_killed_at_random_lose_and_change_nothing():
    cases = [(boxed(f"\\frac{{{2 * k}}}{{2}}"), str(k if k % 3 else k + 1), bool(k % 3)) for k in range(1000)]
    rng = random.Random(1)
    stop, done = threading.Event(), threading.Semaphore(0)

    def kill_at_random():
        while not stop.is_set():
            for _ in range(rng.randrange(40, 100)):  # so that the pace does not depend on the machine's
                done.acquire()
            victims = children()
            if victims:
                os.kill(rng.choice(victims), signal.SIGKILL)

    killer = threading.Thread(target=kill_at_random)
    with VerifierPool(2) as made:
        killer.start()
        futures = []
        for response, answer, _ in cases:
            futures.append(made.submit(response, answer))
            futures[-1].add_done_callback(lambda _: done.release())
        verdicts = [future.result(timeout=300) for future in futures]
        stop.set()
        done.release(100)
        killer.join()
    assert [verdict.correct for verdict in verdicts] == [correct for *_, correct in cases]


def children(parent=None):
    """Process ids of the verifier workers that this process, or another, has started."""
    parent = parent or os.getpid()
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if is_worker_of(path, parent)]


def is_worker_of(path, parent):
    try:
        _, _, status = (path / "stat").read_text().rpartition(")")
        return int(status.split()[1]) == parent and b"polaris_jax.rewards.worker" in (path / "cmdline").read_bytes()
    except OSError:  # gone meanwhile
        return False


def test_sixteen_threads_verify_at_once():
    def check(k):
        assert threading.current_thread() is not threading.main_thread()
        return [verify(boxed(f"{j}.0/1"), k) == (j == k) for j in range(10)]

    with ThreadPoolExecutor(16) as threads:
        assert all(all(result) for result in threads.map(check, range(16)))


def test_closed_pool_refuses_and_ends_its_workers():
    with VerifierPool(1) as made:
        made.submit(RIGHT, "0.5").result()
        before = children()
    with pytest.raises(RuntimeError, match="closed"):
        made.submit(RIGHT, "0.5")
    assert len(children()) < len(before)


def test_leaving_by_an_exception_cancels_what_waits():
    futures = []

    def leave():
        with VerifierPool(1) as made:
            futures.extend(made.submit(RIGHT, "0.5") for _ in range(500))
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert all(future.done() for future in futures)
    assert any(future.cancelled() for future in futures)


@pytest.mark.parametrize("settings", [{"workers": 0}, {"timeout_s": 0}, {"memory_bytes": 1000}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        VerifierPool(**settings)


SCRIPT = """
print("imported")
from polaris_jax.rewards import verify
print(verify("</think>\\\\boxed{0.5}", "\\\\frac12"))
"""


def test_a_script_without_main_guard_is_not_run_again(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == ["imported", "True"], done.stderr


def test_code_from_standard_input_as_in_a_notebook():
    done = subprocess.run([sys.executable, "-"], input=SCRIPT, capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == ["imported", "True"], done.stderr


def test_a_module_of_the_users_directory_does_not_shadow_ours(tmp_path):
    (tmp_path / "fractions.py").write_text("raise SystemExit('shadowed')")
    code = "import os, sys; sys.path = [p for p in sys.path if p]; from polaris_jax.rewards import verify\n"
    code += f"os.chdir({str(tmp_path)!r}); print(verify('</think>\\\\boxed{{1/2}}', 0.5))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "True", done.stderr


def test_workers_do_not_import_jax_numpy_or_sympy():
    code = "import sys, polaris_jax.rewards.worker; print([m for m in ('jax', 'numpy', 'sympy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "[]", done.stderr


def test_sympy_is_imported_only_where_values_do_not_decide():
    code = (
        "import sys; from polaris_jax.mathematics import judge\n"
        "judge('0.5', ['\\\\frac12']); judge('x=2', ['x=3']); judge('(1,2)', ['\\\\{1,2\\\\}'])\n"
        "print('sympy' in sys.modules, judge('\\\\int_0^1 x^2 dx', ['\\\\frac13']), 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == ["False", "equal", "True"], done.stderr


def test_a_worker_that_sympy_kept_too_long_stays_in_service():
    with VerifierPool(1, timeout_s=4.0) as pool:
        assert pool.submit("</think>\\boxed{\\int_0^1 x^2 dx}", "1/3").result().correct
        assert not pool.submit("</think>\\boxed{\\int_0^1 (x+1)^{10^9} dx}", "5").result().correct
        assert pool.submit("</think>\\boxed{\\sum_{k=1}^{\\infty} 1/2^k}", "1").result().correct


def test_importing_sympy_does_not_count_as_time_of_a_case():
    with VerifierPool(1, timeout_s=0.5) as pool:
        assert pool.submit("</think>\\boxed{1/2}", "0.5").result().correct
        assert pool.submit("</think>\\boxed{\\frac{d}{dx} x^3}", "3x^2").result().correct


def test_workers_die_with_their_parent():
    code = (
        "from polaris_jax.rewards import VerifierPool; import time\n"
        "pool = VerifierPool(2); pool.submit('</think>\\\\boxed{1/2}', 0.5).result()\n"
        "print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "up\n"
        pids = children(parent.pid)
        parent.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, pids))


def running(pid):
    """Whether a process lives (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_forked_child_makes_its_own_pool():
    code = (
        "import os; from polaris_jax.rewards import verify\n"
        "response = '</think>\\\\boxed{1/2}'; assert verify(response, 0.5); pid = os.fork()\n"
        "if not pid: os._exit(0 if verify(response, 0.5) else 1)\n"
        "print(os.waitpid(pid, 0)[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "0", done.stderr


def test_a_worker_that_is_stopped_is_replaced_and_its_case_judged():
    """Stopped before a case, or while it has one in hand: neither is the case's fault."""
    with VerifierPool(1, timeout_s=1.0) as made:
        made.submit(RIGHT, "0.5").result()
        before = children()
        os.kill(before[-1], signal.SIGSTOP)
        assert made.submit(RIGHT, "0.5").result(timeout=60).correct
        assert before[-1] not in children()


def test_a_worker_stopped_within_a_case_is_not_the_cases_fault(misbehaving, monkeypatch):
    receive, begun = process.WorkerProcess._receive, []

    def stop_once(self, deadline):
        reply = receive(self, deadline)
        begun.append(reply)
        if len(begun) == 1:
            os.kill(self.pid, signal.SIGSTOP)
        return reply

    monkeypatch.setattr(process.WorkerProcess, "_receive", stop_once)
    assert misbehaving.submit(boxed("slow"), "slow").result(timeout=60).correct
    assert len(begun) > 2


def test_where_no_process_can_be_started_the_feeder_tries_again(misbehaving, monkeypatch):
    popen, refused = subprocess.Popen, []

    def refuse_twice(*args, **settings):
        refused.append(0)
        if len(refused) <= 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return popen(*args, **settings)

    monkeypatch.setattr("polaris_jax.rewards.pool.START_AGAIN_S", 0.01)
    monkeypatch.setattr(process.subprocess, "Popen", refuse_twice)
    assert misbehaving.submit(boxed("die"), "1").result(timeout=60).reason == Reason.WORKER_DIED
    assert misbehaving.submit(boxed("x1"), "x1").result(timeout=60).correct
    assert len(refused) > 2
