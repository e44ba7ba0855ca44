"""One check in a process of its own: `python -m polaris_jax.gpu_check CHECK SIZE CACHE` prints one JSON line."""

import json
import sys

from polaris_jax.gpu_check.checks import attempt
from polaris_jax.runs.compilation import enable_compilation_cache

check, size, cache = sys.argv[1:]
enable_compilation_cache(cache)
print(json.dumps(attempt(check, size)))
