"""Signals wait for the end of a device call, and then reach who would have got them."""

import os
import signal
import threading

import pytest

from polaris_jax.supervision import DeferredSignals, Preempted, check, preemptible, requested


def test_a_signal_is_held_back_until_it_is_delivered():
    before = signal.getsignal(signal.SIGINT)
    with DeferredSignals() as deferred:
        deferred.deliver()  # none has come
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C twice is one
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(KeyboardInterrupt):
        deferred.deliver()


def test_sigterm_within_a_device_call_is_a_request_that_check_answers():
    with preemptible(60):
        check()
        with DeferredSignals() as deferred:
            os.kill(os.getpid(), signal.SIGTERM)
        deferred.deliver()
        assert requested()
        with pytest.raises(Preempted):
            check()
    assert not requested()


def test_other_threads_leave_the_handlers_alone():
    handlers = []

    def work():
        with DeferredSignals():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
