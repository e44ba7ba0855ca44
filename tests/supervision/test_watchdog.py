"""The watchdog and the last resort after SIGTERM, in processes of their own, which they end."""

import signal
import subprocess
import sys
import threading
import time

from polaris_jax import supervision
from polaris_jax.errors import PREEMPTED, STUCK

HEAD = """
import threading, time
from ml_collections import ConfigDict
from polaris_jax.supervision import heartbeat, patience, supervised
def job(workdir, watchdog_s, grace_s):
    training = {"watchdog_minutes": watchdog_s / 60, "grace_s": grace_s}
    return supervised(ConfigDict({"training": training}), workdir)
"""
HANGS = """
exec(compile("def build(seconds): time.sleep(seconds)", "site-packages/jax/_src/compiler.py", "exec"))
with job(WORKDIR, 0.5, 60) as states:
    states["engine"] = lambda: {"running": 3, "pages_free": 17}
    states["verifier"] = lambda: 1 / 0
    for _ in range(12):
        time.sleep(0.1)
        heartbeat("beating")
    build(2.0)
    with patience():
        time.sleep(2.0)
    time.sleep(0.2)
    print("neither steady beats nor a long compilation or save are stuck", flush=True)
    heartbeat("rollouts")
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""


def start(code, workdir):
    code = HEAD + code.replace("WORKDIR", repr(str(workdir)))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], **pipes)


def test_a_hang_is_reported_with_stacks_and_states_and_ended(tmp_path):
    with start(HANGS, tmp_path) as process:
        told, errors = process.communicate(timeout=120)
    assert told.startswith("neither")
    assert process.returncode == STUCK
    report = (tmp_path / "stuck.0.txt").read_text()
    assert errors.splitlines()[:3] == report.splitlines()[:3]
    assert "most recent call first" in errors
    assert report.startswith("watchdog: nothing moved for 0.5 s; last: rollouts\n")
    assert 'engine: {"running": 3, "pages_free": 17}\nverifier: ZeroDivisionError' in report
    assert report.count('File "<string>", line') >= 1
    assert "most recent call first" in report


def test_sigterm_ends_a_process_that_does_not_look_within_the_grace_time(tmp_path):
    call = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # a long call: no handler can run
    busy = f"with job(WORKDIR, 0, 0.5):\n    print('up', flush=True)\n    {call}"
    with start(busy, tmp_path) as process:
        assert process.stdout.readline() == "up\n"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == PREEMPTED
        assert 0.5 <= time.monotonic() - began < 10


def test_what_heartbeats_say_is_shown_within_the_block_from_any_thread():
    first, second = [], []
    supervision.heartbeat("before")
    with supervision.showing(lambda *said: first.append(said)):
        supervision.heartbeat("one")
        supervision.heartbeat()  # progress without words
        with supervision.showing(lambda *said: second.append(said)):
            other = threading.Thread(target=supervision.heartbeat, args=["rollouts", 2, 8])
            other.start()
            other.join()
        supervision.heartbeat("one")  # said again, shown again: something else may stand there by now
    supervision.heartbeat("after")
    one = ("one", None, None)
    assert first == [one, ("rollouts", 2, 8), one]
    assert second == [("rollouts", 2, 8)]


def test_threads_may_come_and_go_while_others_have_heartbeats():
    seen, errors = [], []

    def work(number):
        try:
            for i in range(200):
                with supervision.showing(lambda what, *_: seen.append(what)):
                    supervision.heartbeat(f"{number} {i}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {f"{number} {i}" for number in range(4) for i in range(200)} == set(seen)


def test_nobody_is_shown_anything_when_the_block_ended_with_an_error():
    seen = []
    try:
        with supervision.showing(lambda what, *_: seen.append(what)):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        supervision.heartbeat("after")
    assert seen == []
