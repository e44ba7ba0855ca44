"""GRPO training. Started again with the same flags it resumes.

python experiments/train.py --config=configs/tiny.py --workdir=runs/tiny --config.rollout.samples=16
python experiments/train.py --config=configs/polaris_4b.py --workdir=runs/polaris_4b
"""

from absl import flags
from ml_collections import config_flags

from polaris_jax import cli

CONFIG = config_flags.DEFINE_config_file("config", None, "The config; --config.KEY=VALUE overrides one of its keys.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run's files go. An unfinished run there is resumed.")
CHANGED = flags.DEFINE_list("allow_changed", [], "Config keys that may differ from those of the unfinished run.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
    """Trains, and says where things are."""
    print("loading", flush=True)
    from polaris_jax import report
    from polaris_jax.plan.here import memory_line
    from polaris_jax.sharding.multihost import is_writer
    from polaris_jax.training import loop

    print(memory_line(CONFIG.value, "GRPO"), flush=True)
    history = loop.run(CONFIG.value, WORKDIR.value, allow_changed=tuple(CHANGED.value))
    if is_writer():
        history.plot().savefig(f"{WORKDIR.value}/training.png", dpi=120)
        report.write([WORKDIR.value])
    print(f"metrics, samples, checkpoints, training.png and report.html: {history.workdir}")


if __name__ == "__main__":
    cli.run(main)
