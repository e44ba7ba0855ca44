"""What watches over a job: SIGTERM ends it in time, Ctrl-C loses nothing, and a watchdog ends what hangs."""

from polaris_jax.supervision.interrupts import DeferredSignals
from polaris_jax.supervision.preemption import Preempted, check, preemptible, requested
from polaris_jax.supervision.progress import display
from polaris_jax.supervision.watchdog import States, heartbeat, patience, showing, supervised

__all__ = [
    "DeferredSignals",
    "Preempted",
    "States",
    "check",
    "display",
    "heartbeat",
    "patience",
    "preemptible",
    "requested",
    "showing",
    "supervised",
]
