"""Prints, as json, the peak of a process's own memory (MiB) over: importing, loading, and saving a checkpoint."""

import json
import sys
import threading
import time
from pathlib import Path

import jax

from polaris_jax import hf


def own_memory() -> float:
    """MiB of memory that is not a mapped file's."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


class Peak:
    """The largest `own_memory` within the block, looked at every 2 ms."""

    def __enter__(self):
        self.value, self.stop = own_memory(), threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        """Looks until told to stop."""
        while not self.stop.is_set():
            self.value = max(self.value, own_memory())
            time.sleep(0.002)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


jax.block_until_ready(jax.numpy.zeros(1) + 1)
start = own_memory()
with Peak() as loading:
    config, params = hf.load(sys.argv[1])
    jax.block_until_ready(params)
loaded = own_memory()
with Peak() as saving:
    hf.save(params, config, sys.argv[2])
copy = config.num_parameters * 4 / 2**20
print(json.dumps(dict(copy=copy, loading=loading.value - start, loaded=loaded - start, saving=saving.value - loaded)))
