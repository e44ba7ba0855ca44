"""A worker process as the pool sees it: start, ask, kill."""

import json
import math
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

HEADER = struct.Struct("!I")
COMMAND = (sys.executable, "-P", "-m", "polaris_jax.rewards.worker")
IMPORTING = "importing"  # what a worker says before it imports what a case needs, and "" behind it
START_TIMEOUT_S = 60.0
IDLE_SHARE = 0.1  # of the timeout; a worker that got less of a processor was stopped, or had no machine


class WorkerDied(Exception):
    """The process ended, or could not be started."""


class WorkerNeverBegan(WorkerDied):
    """The process ended before it took up the case, which is not to blame."""


class WorkerTimedOut(Exception):
    """No reply in time, although the worker was computing."""


class WorkerProcess:
    """One `polaris_jax.rewards.worker`, started by exec: no fork of this process, whose threads may hold locks."""

    def __init__(self, timeout_s: float, memory_bytes: int):
        self._process = subprocess.Popen(
            [*COMMAND, str(timeout_s), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            bufsize=0,
            process_group=0,  # Ctrl-C is for the process that owns the pool
        )
        self.pid = self._process.pid
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._stdin, False)
        self._ready = False

    def wait_ready(self) -> None:
        """Return once the worker has imported what it needs. Raises WorkerDied or WorkerTimedOut."""
        if not self._ready:
            self._receive(time.monotonic() + START_TIMEOUT_S)
            self._ready = True

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def ask(self, request: object, timeout_s: float) -> object:
        """Send a JSON value, return the JSON reply.

        Raises WorkerTimedOut where the case took too long, and WorkerDied where the worker died or did not run; then
        only kill() is left.
        """
        deadline = time.monotonic() + timeout_s
        body = json.dumps(request).encode()
        try:
            self._send(HEADER.pack(len(body)) + body, deadline)
            self._receive(deadline)
        except (WorkerDied, WorkerTimedOut) as error:
            raise WorkerNeverBegan from error
        before = self._cpu_s()
        try:
            return self._verdict(deadline, timeout_s)
        except WorkerTimedOut as error:
            if self._cpu_s() - before < IDLE_SHARE * timeout_s:
                raise WorkerDied(f"worker {self.pid} did not run") from error
            raise

    def _verdict(self, deadline: float, timeout_s: float) -> object:
        """The reply, for which the clock starts anew where the worker had to import something first."""
        reply = self._receive(deadline)
        while reply == IMPORTING:
            reply = self._receive(time.monotonic() + START_TIMEOUT_S)
            reply = self._receive(time.monotonic() + timeout_s) if reply == "" else reply
        return reply

    def _cpu_s(self) -> float:
        """Seconds of a processor that the worker has had; inf where the system does not tell."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return math.inf
        return (int(status[11]) + int(status[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End the process now and reap it."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            _wait_for(self._stdin, select.POLLOUT, deadline)
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise WorkerDied(f"worker {self.pid} closed its input") from error

    def _receive(self, deadline: float) -> object:
        (size,) = HEADER.unpack(self._read(HEADER.size, deadline))
        return json.loads(self._read(size, deadline))

    def _read(self, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            _wait_for(self._stdout, select.POLLIN, deadline)
            chunk = os.read(self._stdout, size - len(data))
            if not chunk:
                raise WorkerDied(f"worker {self.pid} closed its output")
            data += chunk
        return data


def _wait_for(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    remaining = deadline - time.monotonic()
    if remaining <= 0 or not poll.poll(1000 * remaining):
        raise WorkerTimedOut


def _environment() -> dict[str, str]:
    """This process's environment, with this package importable however it was found here."""
    package_root = str(Path(__file__).resolve().parents[2])
    path = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
