"""Run by test_multihost.py as two processes that a cluster's variables name: they agree, or an assertion fails."""

import time

import jax

from polaris_jax.sharding import multihost

multihost.start()
me, others = jax.process_index(), 1 - jax.process_index()
assert jax.process_count() == 2
assert multihost.is_writer() == (me == 0)

assert multihost.any_process(me == 1)
assert not multihost.any_process(False)
assert multihost.share(range(5)) == range(me, 5, 2)
for size in (0, 1, 1000):
    assert multihost.gather([me, "ä" * size * me]) == [[0, ""], [1, "ä" * size]]
assert multihost.gather_bytes(bytes([me]) * me) == [b"", b"\x01"]

early, late = multihost.SharedFlag(), multihost.SharedFlag()
if me == 1:
    early.set()
    time.sleep(1)
began = time.monotonic()
multihost.wait_for_all()
assert me == 1 or time.monotonic() - began > 0.5
time.sleep(0.6)
assert early.is_set()
assert not late.is_set()
multihost.barrier("the end")
print("agreed")
