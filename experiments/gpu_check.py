"""What this machine can do: kernels, log-prob differences, speeds, the longest response that trains.

    python experiments/gpu_check.py --workdir=runs/gpu-check --budget=480 --peer --profile

The most important comes first, and each result is printed as it comes. Started again it resumes. Uses one device.
Without a GPU or TPU all of it runs at a tiny size.
"""

from functools import partial

from absl import flags
from rich.console import Console

from polaris_jax import cli

WORKDIR = flags.DEFINE_string("workdir", "runs/gpu-check", "Where results.jsonl, traces and logs go.")
SIZE = flags.DEFINE_string("size", "", "4b or tiny; empty: 4b where there is an accelerator.")
BUDGET = flags.DEFINE_float("budget", 0.0, "Ends within so many seconds, unfinished if need be; 0: no limit.", 0.0)
PEER = flags.DEFINE_bool("peer", False, "The same updates in transformers + torch, where they are installed.")
PROFILE = flags.DEFINE_bool("profile", False, "Device time by kernel of decoding and of an update, too.")


def main(_: list[str]) -> int:
    """Makes the checks and prints their tables. Returns 1 where one failed."""
    from polaris_jax.gpu_check import report
    from polaris_jax.gpu_check.runner import CheckResults, Options, run

    console = Console()
    announce = partial(console.print, markup=False, highlight=False, soft_wrap=True)

    def finish(outcome: CheckResults) -> int:
        console.print(report.table(outcome))
        announce(report.longest_response(outcome))
        announce(f"results: {WORKDIR.value}/results.jsonl")
        if not outcome.complete:
            announce("Not all is done: the same command resumes.")
        for result in report.failed(outcome):
            announce(f"FAILED {result.check} {result.note}")
        console.file.flush()
        return int(bool(report.failed(outcome)))

    return finish(run(WORKDIR.value, Options(SIZE.value, BUDGET.value, PEER.value, PROFILE.value), announce, finish))


if __name__ == "__main__":
    cli.run(main)
