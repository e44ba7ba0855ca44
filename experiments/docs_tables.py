"""Makes the tables of planned runs in docs/scaling.md anew, and says below each when that was.

    python experiments/docs_tables.py
    python experiments/docs_tables.py --page=docs/scaling.md

A table belongs to the indented `python experiments/plan.py ... --search` above it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path

from absl import flags

from polaris_jax import cli

PAGE = flags.DEFINE_string("page", "docs/scaling.md", "The page.")
# A command, what stands before its table but is no heading, the table to the line of its sum, and the date.
TABLE = re.compile(
    r"^(?P<command>    python experiments/plan\.py --config=(?P<config>\S+) --topology=(?P<topology>\S+) --search\n)"
    r"(?P<between>(?:(?![|#]).*\n)*)"
    r"(?:\|.*\n)+\nAll .*\n(?:\nPlanned on .*\n)?",
    re.MULTILINE,
)


def main(_: list[str]) -> None:
    """Writes the page anew."""
    from polaris_jax import config as configs
    from polaris_jax.plan import hardware, planner, report

    def table(config: str, topology: str) -> str:
        print(f"{config} on {topology}", flush=True)
        plan = planner.plan(configs.load(config), hardware.parse_topology(topology), search=True)
        return report.markdown(plan)

    page = Path(PAGE.value)
    page.write_text(renewed(page.read_text(encoding="utf-8"), table, date.today()), encoding="utf-8")


def renewed(text: str, table: Callable[[str, str], str], today: date) -> str:
    """The page with each table replaced by `table(config, topology)`, and the day below it."""

    def replace(found: re.Match[str]) -> str:
        when = f"Planned on {today} (`python experiments/docs_tables.py`).\n"
        return f"{found['command']}{found['between']}{table(found['config'], found['topology'])}\n{when}"

    return TABLE.sub(replace, text)


if __name__ == "__main__":
    cli.run(main)
