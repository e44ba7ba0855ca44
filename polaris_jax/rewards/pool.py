"""Verification in killable worker processes: bounded in time and memory whatever the text."""

import os
import queue
import threading
import time
from concurrent.futures import Future
from typing import NamedTuple

from polaris_jax.rewards.answers import alternatives, final_box, judge_integers
from polaris_jax.rewards.process import WorkerDied, WorkerNeverBegan, WorkerProcess, WorkerTimedOut
from polaris_jax.rewards.verdict import Reason, Verdict

MAX_TEXT = 20_000  # characters of a box or of all ground truths; no answer is that long
MIN_MEMORY_BYTES = 64 << 20
START_AGAIN_S = 1.0
ATTEMPTS = 2  # per case: a worker that dies is replaced and the case tried once more


class _Task(NamedTuple):
    box: str
    golds: list[str]
    future: Future


class VerifierPool:
    """Worker processes that judge responses; each case gets its verdict within `timeout_s` of its worker's time.

    A worker that passes the time is killed and replaced, one that passes `memory_bytes` of address space or dies
    is replaced; no other case is affected. May be used from any thread; each worker is fed by one thread of its own.
    `require_think=False` drops the rule that only text after `</think>` counts.
    """

    def __init__(
        self,
        workers: int = 2,
        timeout_s: float = 2.0,
        memory_bytes: int = 1 << 30,
        *,
        require_think: bool = True,
    ):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s}")
        if memory_bytes < MIN_MEMORY_BYTES:
            raise ValueError(f"memory_bytes must be at least {MIN_MEMORY_BYTES} for Python itself, got {memory_bytes}")
        self._timeout_s, self._memory_bytes, self._require_think = timeout_s, memory_bytes, require_think
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._owner = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._serve, name=f"verifier-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, response: str, answer: object) -> "Future[Verdict]":
        """Judge `response` against `answer` (string, number, or list of alternatives); returns at once.

        The future gives a Verdict and never raises. Raises RuntimeError on a closed pool.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("this VerifierPool belongs to another process; make one after the fork")
        self._refuse_if_closed()
        future: Future[Verdict] = Future()
        box = final_box(response, require_think=self._require_think)
        if isinstance(box, Reason):
            future.set_result(Verdict(False, box))
            return future
        golds = alternatives(answer)
        if not golds or not box.strip() or len(box) > MAX_TEXT or sum(map(len, golds)) > MAX_TEXT:
            future.set_result(Verdict(False, Reason.UNPARSABLE))
            return future
        reason = judge_integers(box, golds)
        if reason is not None:
            future.set_result(Verdict(reason is Reason.EQUAL, reason))
            return future
        with self._lock:
            self._refuse_if_closed()
            self._tasks.put(_Task(box, golds, future))
        return future

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("submit to a closed VerifierPool")

    def close(self, *, cancel_pending: bool = False) -> None:
        """Finish what was submitted, or cancel what no worker has begun, then end the workers."""
        with self._lock:
            while cancel_pending and not self._closed and not self._tasks.empty():
                task = self._tasks.get()
                if task is not None:
                    task.future.cancel()
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def state(self) -> dict[str, int]:
        """For a report: cases that no worker has begun, and threads that feed a worker."""
        return {"queued": self._tasks.qsize(), "feeders": sum(thread.is_alive() for thread in self._threads)}

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        self.close(cancel_pending=kind is not None)

    def _serve(self) -> None:
        worker = self._start()
        while (task := self._tasks.get()) is not None:
            if task.future.set_running_or_notify_cancel():
                worker, reason = self._judge(worker, task)
                task.future.set_result(Verdict(reason is Reason.EQUAL, reason))
        worker.kill()

    def _start(self) -> WorkerProcess:
        while True:
            try:
                return WorkerProcess(self._timeout_s, self._memory_bytes)
            except OSError:  # no memory or no process id just now: a feeder that ended would leave its cases behind
                time.sleep(START_AGAIN_S)

    def _judge(self, worker: WorkerProcess, task: _Task) -> tuple[WorkerProcess, Reason]:
        """The case's reason, and the worker to use from now on."""
        deaths = 0
        while deaths < ATTEMPTS:
            try:
                worker = self._ready(worker)
                return worker, Reason(worker.ask([task.box, task.golds], self._timeout_s))
            except WorkerTimedOut:
                worker.kill()
                return self._start(), Reason.TIMED_OUT
            except WorkerDied as error:
                deaths += not isinstance(error, WorkerNeverBegan)
                worker.kill()
                worker = self._start()
        return worker, Reason.WORKER_DIED

    def _ready(self, worker: WorkerProcess) -> WorkerProcess:
        """A live, warm worker: this one, or its replacement where it died while no case was in its hands."""
        for _ in range(20):
            try:
                worker.wait_ready()
                if worker.alive():
                    return worker
            except (WorkerDied, WorkerTimedOut):
                pass
            worker.kill()
            worker = self._start()
        raise WorkerDied("no worker could be started")


_default_pool: VerifierPool | None = None
_default_lock = threading.Lock()


def verify(response: str, answer: object) -> bool:
    r"""Whether the last `\boxed{...}` after the last `</think>` of `response` equals `answer`.

    `answer` is a string, a number, or a list of alternatives, each of which is right. Safe on any text from any
    thread: it runs in a small pool shared by the process.
    """
    return _shared_pool().submit(response, answer).result().correct


def _shared_pool() -> VerifierPool:
    global _default_pool
    with _default_lock:
        if _default_pool is None:
            _default_pool = VerifierPool()
        return _default_pool


def _forget_shared_pool() -> None:
    """A forked child has none of the pool's threads: it makes its own pool when it needs one."""
    global _default_pool, _default_lock
    _default_pool, _default_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_shared_pool)
