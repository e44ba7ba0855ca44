"""The report of runs and evaluations: all that it shows as one json value, and the page around it.

The page is a template with autoescape. What a model or a dataset wrote is in it only within that json value, in which
every character that HTML knows is escaped, and reaches the screen only as text nodes. A content security policy allows
the page's own script, by its hash, and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from polaris_jax.errors import UserError
from polaris_jax.files import write_whole
from polaris_jax.report import evaluations, rollouts, runs
from polaris_jax.report.parts import as_json

NAME = "report.html"
SCRIPTS = ("elements.js", "charts.js", "overview.js", "responses.js", "evaluations.js", "page.js")


def write(workdirs: Sequence[str | Path], target: str | Path | None = None) -> Path:
    """Writes the report of all runs and evaluations in `workdirs` and two levels below, and returns its path.

    target: the file; None: report.html in the first of `workdirs`. The file is below 20 MB whatever the runs hold: of
    rollouts and responses a part is chosen, spread over the steps, and the page says of how many. Raises UserError
    where there is nothing to show or the file cannot be written.
    """
    target = Path(target or Path(workdirs[0]) / NAME)
    try:
        write_whole(target, render(collect(workdirs)))
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    return target


def collect(workdirs: Sequence[str | Path]) -> dict[str, Any]:
    """All that the page shows, json-able. Raises UserError where there is neither a run nor an evaluation."""
    found = runs.find(workdirs, "metrics.jsonl")
    scored = runs.find(workdirs, "scores.json")
    if not found and not scored:
        where = ", ".join(map(str, workdirs))
        raise UserError(f"{where}: neither metrics.jsonl nor scores.json is here or two levels below")
    shown = [runs.run(name, path, count=len(found)) for name, path in found.items()]
    groups, notes = rollouts.collect(found, shown)
    return {
        "title": ", ".join(str(Path(workdir)) for workdir in workdirs),
        "runs": shown,
        "config": runs.config_table(found),
        "groups": groups,
        "evaluations": evaluations.collect(scored),
        "notes": notes,
    }


def render(data: dict[str, Any]) -> str:
    """The page that shows `data`. Numbers that are not finite become null."""
    room = files(__package__) / "static"
    script = "\n".join((room / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = Environment(autoescape=True).from_string((room / "page.html").read_text(encoding="utf-8"))
    return template.render(
        title=data["title"].encode(errors="replace").decode(),
        script=script,
        digest=digest,
        style=(room / "page.css").read_text(encoding="utf-8"),
        data=as_json(data),
    )
