"""The demo over seeds and instruction sets, as a table: what docs/demo.md says, made again. Hours on two cores.

python experiments/demo_table.py --workdir=runs/demo_table
python experiments/demo_table.py --workdir=runs/demo_table --seeds=0,1,2 --machine=plain --machine=AVX2
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from absl import flags

from polaris_jax import cli
from polaris_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", "runs/demo_table", "One directory a run; what is there is not run again.")
SEEDS = flags.DEFINE_list("seeds", [*map(str, range(8))], "Seeds of the plain runs.")
KINDS = ("plain", "AVX2", "SSE4_2", "one core")
MACHINES = flags.DEFINE_multi_enum("machine", KINDS, KINDS, "What the machine computes with: all of it, or less.")
OTHER_SEEDS = 3  # seeds of the machines that are not plain
COLUMNS = ("seed", "machine", "after SFT", "after GRPO", "length", "seconds", "")


def main(_: list[str]) -> int:
    """Runs the demo again and again, prints each row as it comes; 1 where a run missed a bar."""
    print(row(*COLUMNS), row(*["---"] * len(COLUMNS)), sep="\n", flush=True)
    missed = 0
    for machine in MACHINES.value:
        for seed in SEEDS.value if machine == "plain" else SEEDS.value[:OTHER_SEEDS]:
            found = demo(Path(WORKDIR.value) / f"{machine.replace(' ', '_')}_{seed}", seed, machine)
            sft, rl = (f"{found[f'accuracy_{name}']:.1%}" for name in ("sft", "rl"))
            length = f"{found['length_sft']:.1f} to {found['length_rl']:.1f}"
            cells = seed, machine, sft, rl, length, f"{found['seconds']:.0f}", " ".join(found["shortfalls"])
            print(row(*cells), flush=True)
            missed += bool(found["shortfalls"])
    return int(missed > 0)


def demo(workdir: Path, seed: str, machine: str) -> dict:
    """The summary of one run, which is made where it is not there. Raises UserError where the run broke off."""
    summary = workdir / "summary.json"
    if not summary.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "experiments/demo.py", f"--workdir={workdir}", f"--config.seed={seed}"]
        isa = {"XLA_FLAGS": f"--xla_cpu_max_isa={machine}"} if machine in ("AVX2", "SSE4_2") else {}
        if machine == "one core":
            command = ["taskset", "-c", "0", *command]
        with (workdir / "log.txt").open("w") as log:
            subprocess.run(command, env=os.environ | isa, stdout=log, stderr=subprocess.STDOUT, check=False)
    if not summary.exists():
        raise UserError(f"{workdir}/log.txt: the demo ended without a summary")
    return json.loads(summary.read_text())


def row(*cells: str) -> str:
    """One line of a markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    cli.run(main)
