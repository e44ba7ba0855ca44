"""One verifier worker: `python -m polaris_jax.rewards.worker TIMEOUT_S MEMORY_BYTES`.

Speaks length-prefixed JSON on its standard input and output. A request is a case, one of

    ["judge", box, [ground truth, ...]]       reply: a `Reason`
    ["gym", answer, metadata]                 a scorer's number
    ["call", function, response, problem]     a reward function's [number, error]
    ["load", function]                        why it cannot be imported, or nothing

with a `Reason` as the reply where time or memory ran out. An empty reply comes before it, when the case begins; a first
one says that the worker is up. Before it imports sympy, reasoning-gym or a user's file it says so, and sends an empty
reply when it has. It bounds its own memory, gives up on a case shortly before the pool would kill it, and ends when its
input ends, that is when the process that started it is gone.
"""

import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, BinaryIO

from polaris_jax.mathematics import importing_sympy, judge
from polaris_jax.rewards import functions, gym
from polaris_jax.rewards.functions import RewardFunction
from polaris_jax.rewards.verdict import Reason
from polaris_jax.types import problem_from_json

IMPORTING = "importing"
HEADER = struct.Struct("!I")
SOFT_SHARE = 0.8  # of the timeout; past it the worker gives up by itself and stays warm


class OutOfTime(BaseException):
    """Not an Exception, so that no library can swallow it."""


def main(timeout_s: float, memory_bytes: int) -> None:
    """Serve requests until the input ends."""
    requests, replies = _take_over_stdio()
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _raise_out_of_time)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends a worker stuck in C code that nobody is left to kill
    importing_sympy.set(partial(_importing, replies, timeout_s))
    _send(replies, "")
    while (request := _receive(requests)) is not None:
        _send(replies, "")  # from here on the case may have killed this worker
        reply = _answer(request, timeout_s)
        _send(replies, reply)
        if reply is Reason.OVER_MEMORY:
            return  # the pool starts a worker whose memory is not in pieces


def _answer(request: list, timeout_s: float) -> Any:
    kind, *case = request
    _set_clocks(timeout_s)
    try:
        return CASES[kind](*case)
    except OutOfTime:
        return Reason.TIMED_OUT
    except MemoryError:
        return Reason.OVER_MEMORY
    finally:
        _set_clocks(0)


def _judge(box: str, golds: list[str]) -> Reason:
    return Reason(judge(box, golds))


def _score(answer: str, metadata: str) -> float | Reason:
    try:
        if "reasoning_gym" not in sys.modules:
            with importing_sympy.get()():
                gym.load()
        return gym.score(answer, metadata)
    except Exception:  # a scorer that cannot read an answer
        return Reason.UNPARSABLE


def _call(function: list[str], response: str, problem: dict[str, Any]) -> tuple[float, str]:
    if error := _load(function):
        return 0.0, error
    try:
        asked = problem_from_json(problem)
        return functions.call(RewardFunction(*function), response, asked), ""
    except (MemoryError, OutOfTime):
        raise
    except BaseException as error:  # sys.exit() too: it is the function that ends, not the worker
        return 0.0, _words(error)


def _load(function: list[str]) -> str:
    found = RewardFunction(*function)
    try:
        with nullcontext() if functions.is_loaded(found) else importing_sympy.get()():
            functions.find(found)
    except (MemoryError, OutOfTime):
        raise
    except BaseException as error:
        return _words(error)
    return ""


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


CASES: dict[str, Callable[..., Any]] = {"judge": _judge, "gym": _score, "call": _call, "load": _load}


@contextmanager
def _importing(replies: BinaryIO, timeout_s: float) -> Iterator[None]:
    """Stops the clock while something is imported, once in a worker's life: half an import would spoil the worker."""
    _set_clocks(0)
    _send(replies, IMPORTING)
    yield
    _send(replies, "")
    _set_clocks(timeout_s)


def _set_clocks(timeout_s: float) -> None:
    """Starts the clocks of a case, the soft one and the one of its processor time; 0 stops them."""
    signal.setitimer(signal.ITIMER_PROF, 10 * timeout_s)
    signal.setitimer(signal.ITIMER_REAL, SOFT_SHARE * timeout_s)


def _raise_out_of_time(signum: int, frame: object) -> None:
    raise OutOfTime


def _take_over_stdio() -> tuple[BinaryIO, BinaryIO]:
    """The protocol's streams; whatever a library prints goes to the null device instead."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return os.fdopen(requests, "rb"), os.fdopen(replies, "wb")


def _send(stream: BinaryIO, reply: Any) -> None:
    body = json.dumps(reply).encode()
    stream.write(HEADER.pack(len(body)) + body)
    stream.flush()


def _receive(stream: BinaryIO) -> list | None:
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    body = stream.read(HEADER.unpack(header)[0])
    return json.loads(body)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
