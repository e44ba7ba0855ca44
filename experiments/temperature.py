r"""Probes a model's accuracy and diversity over sampling temperatures and finds the zones.

    python experiments/temperature.py --config=configs/tiny.py --model=runs/demo/sft --output=probes/tiny
    python experiments/temperature.py --config=configs/polaris_4b.py --model=Qwen/Qwen3-4B --output=probes/qwen3-4b \
        --temperatures=0.6,1.0,1.2,1.4,1.45,1.5,1.55,1.6 --config.evaluation.benchmarks='("aime24:32",)'

A probe that was stopped resumes when it is started again with the same output.
"""

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from polaris_jax import cli
from polaris_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "The config; --config.KEY=VALUE overrides one of its keys.")
MODEL = flags.DEFINE_string("model", None, "The model, in place of config.model's path and tokenizer.")
TEMPERATURES = flags.DEFINE_list("temperatures", None, "The temperatures (default: from 0.6 to 1.7 in steps of 0.1).")
OUTPUT = flags.DEFINE_string("output", None, "Directory for responses, probe.json and temperature.png.")
flags.mark_flags_as_required(["config", "output"])


def main(_: list[str]) -> None:
    """Probes, and prints the table, the zones and where things are."""
    print("loading", flush=True)
    from polaris_jax import config as configs
    from polaris_jax.evaluation import probe

    try:
        temperatures = list(map(float, TEMPERATURES.value or probe.TEMPERATURES))
    except ValueError as error:
        raise UserError(f"--temperatures: {error}") from error
    changes = {"model.path": MODEL.value, "model.tokenizer": ""} if MODEL.value else {}
    config, console = configs.override(CONFIG.value, changes), Console()
    found = probe.run(config, OUTPUT.value, temperatures)
    console.print(probe.table(found, config.model.path or config.model.preset))
    for name, (first, last) in found.zones._asdict().items():
        console.print(f"{name:<12} {f'{first:g} to {last:g}' if first < last else 'not in this grid'}")
    console.print(f"temperature.png and probe.json: {OUTPUT.value}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
