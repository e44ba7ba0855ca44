"""Plans a run on hardware that need not be there: memory, mesh, time, device-hours and money of each stage.

    python experiments/plan.py --config=configs/polaris_4b.py --topology=h100:32 --search --output=plans/h100
    python experiments/plan.py --config=configs/polaris_4b.py --topology=v5p:4x4x4 --search --achieved=0.5

Without --search the config's own mesh and remat policy are planned.
"""

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from polaris_jax import cli
from polaris_jax.plan import hardware

CONFIG = config_flags.DEFINE_config_file("config", None, "The config; --config.KEY=VALUE overrides one of its keys.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Devices, such as v5p:4x4x4, h100:8 or h200:1.")
SEARCH = flags.DEFINE_bool("search", False, "Tries meshes and remat policies, with slots and page pool to match.")
COMPILE = flags.DEFINE_bool("compile", False, "Measures memory by compiling for the topology; takes minutes.")
MEAN = flags.DEFINE_float("mean_response", None, "Mean response length as a share of the limit (default: 0.5).")
ACHIEVED = flags.DEFINE_float("achieved", None, "Share of the roofline's speed that a run reaches (default: 0.4).")
PRICES = flags.DEFINE_string("prices", str(hardware.PRICES), "Prices by kind of device, toml.")
OUTPUT = flags.DEFINE_string("output", None, "Directory for plan.json and plan.png.")
flags.mark_flags_as_required(["config", "topology"])


def main(_: list[str]) -> None:
    """Prints the tables, and writes them as JSON and a picture where --output says."""
    from polaris_jax.plan import planner, report
    from polaris_jax.plan.roofline import Assumptions

    topology = hardware.parse_topology(TOPOLOGY.value)
    given = {"mean_response": MEAN.value, "achieved": ACHIEVED.value}
    assumed = Assumptions(**{name: value for name, value in given.items() if value is not None})
    plan = planner.plan(
        CONFIG.value,
        topology,
        search=SEARCH.value,
        compiled=COMPILE.value,
        assumed=assumed,
        prices=PRICES.value,
    )
    console = Console(width=max(Console().width, 160))  # the tables are wide
    console.print(report.memory_table(plan))
    console.print(report.stage_table(plan))
    for line in report.notes(plan):
        console.print(line, soft_wrap=True)
    if OUTPUT.value:
        report.save(plan, OUTPUT.value)
        console.print(f"plan.json and plan.png: {OUTPUT.value}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
