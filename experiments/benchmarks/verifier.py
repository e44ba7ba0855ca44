r"""Accuracy and speed of the verifier and, in the same run, of math-verify: one JSON line.

pip install -e '.[peers]'
python experiments/benchmarks/verifier.py --cases=tests/mathematics/data/examples.jsonl [--workers=2]
"""

import json

import measure_verifier as measure
from absl import flags

from polaris_jax import cli

CASES = flags.DEFINE_string("cases", "tests/mathematics/data/examples.jsonl", "jsonl with response, answer, correct.")
WORKERS = flags.DEFINE_integer("workers", 2, "Worker processes of the pool.", lower_bound=1)
KINDS = flags.DEFINE_bool("kinds", False, "Count the right verdicts by kind of case.")
PEER = flags.DEFINE_bool("peer", True, "Run math-verify too.")


def main(_: list[str]) -> None:
    """Measures and prints."""
    cases = measure.read_cases(CASES.value)
    result = {"cases": len(cases), "workers": WORKERS.value, "polaris_jax": measure.ours(cases, WORKERS.value)}
    if KINDS.value:
        result["right_by_kind"] = measure.right_by_kind(cases, WORKERS.value)
    if PEER.value:
        result["math_verify"] = measure.math_verify(cases)
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
