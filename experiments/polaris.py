"""The whole recipe in one unattended run: difficulty, filter, stages, evaluation, export.

    python experiments/polaris.py --config=configs/polaris_4b.py --workdir=runs/polaris_4b
    python experiments/polaris.py --config=configs/tiny_stages.py --workdir=runs/tiny

Started again with the same flags it resumes, and a finished run that is given more steps or stages trains on. A config
without `model.path` begins with SFT.
"""

from functools import partial
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from polaris_jax import cli

CONFIG = config_flags.DEFINE_config_file("config", None, "The config; --config.KEY=VALUE overrides one of its keys.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything goes. An unfinished run there is resumed.")
CHANGED = flags.DEFINE_list("allow_changed", [], "Config keys that may differ from those of the unfinished run.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
    """Runs the recipe, and prints the scores, where the time went, and where things are."""
    print("loading", flush=True)
    from polaris_jax import report as html
    from polaris_jax.evaluation import report
    from polaris_jax.plan.here import memory_line
    from polaris_jax.sharding.multihost import is_writer
    from polaris_jax.supervision import preemptible
    from polaris_jax.training import recipe
    from polaris_jax.training.pictures import OVERVIEW

    print(memory_line(CONFIG.value, "GRPO"), flush=True)
    workdir, console = Path(WORKDIR.value), Console()
    announce = partial(console.print, style="bold")
    with preemptible(CONFIG.value.training.grace_s):  # between two phases, too
        outcome = recipe.run(CONFIG.value, workdir, announce=announce, allow_changed=tuple(CHANGED.value))
    if not is_writer():
        return
    outcome.history.plot((*OVERVIEW, "temperature")).savefig(workdir / "training.png", dpi=120)
    console.print(report.table(outcome.scores, str(workdir / "train")))
    for phase, spent in outcome.phases.items():
        console.print(f"{phase:<12} {spent['seconds']:8.0f} s  {spent['device_hours']:8.2f} device-hours")
    console.print(f"report       {html.write([workdir])}", soft_wrap=True)
    console.print(f"picture      {workdir}/training.png\ndifficulty   {workdir}/difficulty", soft_wrap=True)
    console.print(f"run          {workdir}/train\nexport       {outcome.export}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
