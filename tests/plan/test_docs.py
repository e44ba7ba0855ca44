"""The docs' tables of planned runs are made by a script, and each says when."""

import re
import sys
from datetime import date
from pathlib import Path

import pytest

from polaris_jax.plan import hardware, report
from polaris_jax.plan.planner import plan
from tests.conftest import smaller_config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
from docs_tables import renewed  # noqa: E402

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table():
    return report.markdown(plan(smaller_config(), hardware.parse_topology("h100:1")))


def test_each_table_is_made_anew_with_its_day_and_the_rest_stays(table):
    asked = []

    def made(config, topology):
        asked.append((config, topology))
        return table

    page = renewed(PAGE, made, date(2030, 1, 2))
    assert asked == [("configs/polaris_4b.py", topology) for topology in ("h100:32", "v5p:2x4x4", "h200:1")]
    assert page.count(f"{table}\nPlanned on 2030-01-02 (") == 3
    assert renewed(page, made, date(2030, 1, 2)) == page
    words = re.findall(r"^(?!\||All|Planned).+", PAGE, re.MULTILINE)
    assert all(line in page for line in words)


def test_each_planned_table_says_when():
    assert len(re.findall(r"^Planned on \d{4}-\d\d-\d\d \(", PAGE, re.MULTILINE)) == len(
        re.findall(r"^    python experiments/plan.py .*--search$", PAGE, re.MULTILINE)
    )


def test_the_table_has_a_column_a_stage_and_the_sum(table):
    first, line, *rows = (row for row in table.splitlines() if row.startswith("|"))
    assert first.endswith("GiB of a device can be filled | train |")
    assert line == "|---|---|"
    assert all(row.count("|") == 3 for row in rows)
    assert re.search(r"^All 4 steps: \d+ device-hours, \d+ US dollars at ", table, re.MULTILINE)
