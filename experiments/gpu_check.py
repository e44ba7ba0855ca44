"""What this machine can do: kernels, log-prob differences, speeds, the longest response that trains.

    python experiments/gpu_check.py --workdir=runs/gpu-check
    python experiments/gpu_check.py --workdir=runs/gpu-check --size=tiny --budget_s=540

Started again it resumes. Uses one device. Without a GPU or TPU all of it runs at a tiny size.
"""

from functools import partial

from absl import flags
from rich.console import Console

from polaris_jax import cli

WORKDIR = flags.DEFINE_string("workdir", "runs/gpu-check", "Where results.jsonl and logs go.")
SIZE = flags.DEFINE_string("size", "", "4b or tiny; empty: 4b where there is an accelerator.")
BUDGET = flags.DEFINE_float("budget_s", 0.0, "Ends within so many seconds, unfinished if need be; 0: no limit.")


def main(_: list[str]) -> int:
    """Runs the checks and prints their tables. Returns 1 where one failed."""
    from polaris_jax import gpu_check
    from polaris_jax.gpu_check import report

    console = Console()
    announce = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    outcome = gpu_check.run(WORKDIR.value, SIZE.value, BUDGET.value, announce)
    console.print(*report.tables(outcome), sep="\n")
    announce(report.longest_response(outcome))
    announce(f"results: {WORKDIR.value}/results.jsonl")
    if not outcome.complete:
        announce("Not all is done: the same command resumes.")
    for result in report.failed(outcome):
        announce(f"FAILED {result.check} {result.note}")
    return int(bool(report.failed(outcome)))


if __name__ == "__main__":
    cli.run(main)
