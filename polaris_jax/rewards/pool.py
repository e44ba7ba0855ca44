"""Verification in killable worker processes: bounded in time and memory whatever the text."""

import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any, NamedTuple

from polaris_jax.rewards.answers import alternatives, final_text
from polaris_jax.rewards.functions import RewardFunction
from polaris_jax.rewards.kinds import KINDS, MAX_TEXT, Question
from polaris_jax.rewards.process import WorkerDied, WorkerNeverBegan, WorkerProcess, WorkerTimedOut
from polaris_jax.rewards.verdict import Reason, Score, Verdict
from polaris_jax.types import Problem

MIN_MEMORY_BYTES = 64 << 20
START_AGAIN_S = 1.0
ATTEMPTS = 2  # per case: a worker that dies is replaced and the case tried once more


class _Task(NamedTuple):
    """A request of `worker.py`, or the reason that is known without one; calls of reward functions, as requests."""

    question: Question
    calls: list[list]
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

    def submit(self, response: str, answer: object, functions: Sequence[RewardFunction] = ()) -> "Future[Verdict]":
        """Judge `response` against `answer`; returns at once.

        answer: a Problem, whose kind says how; or a string, a number, or a list of alternatives, as mathematics.
        functions: what else scores the response, each within the limits of a case; they need a Problem. The future
        gives a Verdict and never raises. Raises RuntimeError on a closed pool.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("this VerifierPool belongs to another process; make one after the fork")
        self._refuse_if_closed()
        future: Future[Verdict] = Future()
        question = self._question(response, answer)
        if isinstance(question, Reason) and not functions:
            future.set_result(_verdict(question))
            return future
        calls = [["call", function, response, asdict(answer)] for function in functions]
        with self._lock:
            self._refuse_if_closed()
            self._tasks.put(_Task(question, calls, future))
        return future

    def _question(self, response: str, answer: object) -> Question:
        problem = answer if isinstance(answer, Problem) else Problem("", "", tuple(alternatives(answer)))
        final = final_text(response, require_think=self._require_think)
        if isinstance(final, Reason):
            return final
        golds = alternatives(problem.answers) if problem.kind == "math" else list(problem.answers)
        return KINDS[problem.kind](final, golds if sum(map(len, golds)) <= MAX_TEXT else [], problem.metadata)

    def check(self, functions: Sequence[RewardFunction]) -> str:
        """Imports the functions in a worker of the pool's limits: what went wrong with the first that cannot be, or "".

        Waits for it. A function is called with the run's first responses only, so that its own faults are not found.
        """
        worker = self._start()
        try:
            for function in functions:
                worker, reply = self._ask(worker, ["load", function])
                if reply:
                    return f"{function.file}: {function.name}: {reply}"
        finally:
            worker.kill()
        return ""

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
                reply, scores = task.question, []
                if not isinstance(reply, Reason):
                    worker, reply = self._ask(worker, reply)
                for call in task.calls:
                    worker, found = self._ask(worker, call)
                    scores.append(Score(0.0, str(found)) if isinstance(found, str) else Score(*found))
                task.future.set_result(_verdict(reply, tuple(scores)))
        worker.kill()

    def _start(self) -> WorkerProcess:
        while True:
            try:
                return WorkerProcess(self._timeout_s, self._memory_bytes)
            except OSError:  # no memory or no process id just now: a feeder that ended would leave its cases behind
                time.sleep(START_AGAIN_S)

    def _ask(self, worker: WorkerProcess, request: list) -> tuple[WorkerProcess, Any]:
        """The worker to use from now on, and its reply to a request, or a Reason where it gave none."""
        deaths = 0
        while deaths < ATTEMPTS:
            try:
                worker = self._ready(worker)
                return worker, worker.ask(request, self._timeout_s)
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


def _verdict(reply: Any, scores: tuple[Score, ...] = ()) -> Verdict:
    """The verdict of a worker's reply: a reason, or a scorer's number, of which 1 or more is right."""
    if isinstance(reply, str):
        return Verdict(reply == Reason.EQUAL, Reason(reply), scores=scores)
    right = reply >= 1
    return Verdict(right, Reason.EQUAL if right else Reason.UNEQUAL, 0.0 if right else float(reply), scores)


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
