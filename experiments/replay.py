"""What was not finite in a skipped update.

    python experiments/replay.py --batch=runs/tiny/not_finite/17.npz
    python experiments/replay.py --batch=runs/tiny/not_finite/17.npz --all

Recomputes loss and gradient of each sequence with the run's parameters; needs the checkpoint of the skipped update.
"""

from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from polaris_jax import cli

BATCH = flags.DEFINE_string("batch", None, "WORKDIR/not_finite/STEP.npz")
ALL = flags.DEFINE_bool("all", False, "Lists the finite sequences, too.")
flags.mark_flag_as_required("batch")


def main(_: list[str]) -> None:
    """Prints a table of the sequences that are not finite."""
    from polaris_jax.sharding.mesh import make_mesh
    from polaris_jax.training import not_finite, replay

    skipped, console = not_finite.load(BATCH.value), Console()
    workdir = Path(BATCH.value).absolute().parent.parent
    mesh, step = make_mesh(skipped.config.mesh), skipped.step + 1
    model, params = replay.load(workdir, mesh, step)  # as before the update, since it was skipped
    model = model.replace(dtype=skipped.config.model.dtype, remat=skipped.config.model.remat)
    for name, count in replay.bad_parameters(params).items():
        console.print(f"parameters {name}: {count} values are not finite", soft_wrap=True)
    findings = list(replay.find(skipped, model, params))
    bad = [finding for finding in findings if finding.what]
    table = Table(*replay.Finding._fields, title=f"step {skipped.step}: {len(bad)} of {len(findings)} not finite")
    for finding in findings if ALL.value else bad:
        table.add_row(
            *("" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value) for value in finding)
        )
    console.print(table)


if __name__ == "__main__":
    cli.run(main)
