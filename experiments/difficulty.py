r"""Measures how often a model solves each problem, and keeps those worth training on.

    python experiments/difficulty.py --config=configs/tiny.py --output=data/tiny --config.model.path=runs/demo/sft
    python experiments/difficulty.py --config=configs/polaris_4b.py --output=data/difficulty_4b \
        --config.difficulty.keep='((0.0, 0.9),)'

Writes the datasets measured/ and kept/, with cards and the columns of the released files, and difficulty.png. Started
again with the same output it resumes.
"""

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from polaris_jax import cli

CONFIG = config_flags.DEFINE_config_file("config", None, "The config; --config.KEY=VALUE overrides one of its keys.")
OUTPUT = flags.DEFINE_string("output", None, "Directory of pass rates and datasets.")
flags.mark_flags_as_required(["config", "output"])


def main(_: list[str]) -> None:
    """Measures, and prints the histogram and where things are."""
    print("loading", flush=True)
    from polaris_jax.data.card import histogram
    from polaris_jax.evaluation import difficulty

    console, config = Console(), CONFIG.value
    found = difficulty.run(config, OUTPUT.value)
    samples = config.difficulty.samples
    for name, problems in found._asdict().items():
        counts = histogram([problem.accuracy for problem in problems], samples)
        shown = "  ".join(f"{k}/{samples}: {count:,}" for k, count in enumerate(counts))
        console.print(f"{name:<9} {len(problems):,} problems: {shown}", soft_wrap=True)
    console.print(f"datasets, cards and difficulty.png: {OUTPUT.value}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
