"""One HTML file of runs and evaluations: curves, rollouts token by token, problems, configs. It needs no server.

    python experiments/report.py --workdir=runs/demo
    python experiments/report.py --workdir=runs/a --workdir=runs/b --output=comparison.html

A workdir is that of a training run, an output directory of an evaluation, or a directory of such, as of a whole recipe.
Training, SFT, evaluation and the recipe write their own report at their end.
"""

from absl import flags

from polaris_jax import cli

WORKDIR = flags.DEFINE_multi_string("workdir", None, "A directory to show; several are compared.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "The file (default: report.html in the first workdir).")


def main(_: list[str]) -> None:
    """Writes the report and says where it is."""
    from polaris_jax import report

    print(f"report: {report.write(WORKDIR.value, OUTPUT.value)}")


if __name__ == "__main__":
    cli.run(main)
