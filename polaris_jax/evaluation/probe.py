"""The probe over sampling temperatures: accuracy and diversity at each, the three zones, a picture and a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from rich import box
from rich.table import Table

from polaris_jax import config as configs
from polaris_jax import supervision
from polaris_jax.errors import UserError
from polaris_jax.evaluation import job
from polaris_jax.evaluation.evaluate import Evaluation
from polaris_jax.evaluation.records import Record, group
from polaris_jax.evaluation.scores import estimate
from polaris_jax.files import Journal, staged, write_json
from polaris_jax.rl.temperature import Zones, diversity, find_zones
from polaris_jax.runs.start import load_model, load_tokenizer
from polaris_jax.runs.workdir import hold
from polaris_jax.sampler import Sampler, verifier_pool, with_think_rule
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.multihost import is_writer

TEMPERATURES = tuple(round(0.6 + 0.1 * i, 6) for i in range(12))  # 0.6 ... 1.7
COLORS = {"robust": "tab:green", "exploration": "tab:orange", "collapse": "tab:red"}


class Probe(NamedTuple):
    """frame: one row a temperature: temperature; mean, low and high of avg@k; diversity; length, tokens; cut_off."""

    frame: pd.DataFrame
    zones: Zones


def run(
    config: ConfigDict,
    output: str | Path,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Probe:
    """Evaluates the model of `config` at each temperature, or resumes the probe in `output`.

    All but the temperature is as in `evaluation.job.run`, and each temperature has an evaluation's directory below
    `output`, which also gets probe.json and temperature.png. Raises UserError as `evaluation.job.run` does.
    """
    if not temperatures:
        raise UserError("temperatures: empty; name at least one")
    problems, tokenizer = job.problems_by_samples(config), load_tokenizer(config)
    config = with_think_rule(config, tokenizer)
    at = {t: configs.override(config, {"evaluation.temperature": t}) for t in sorted(set(temperatures))}
    rows = []
    with hold(output) as held, supervision.display("probe"), verifier_pool(config) as verifier:
        mesh = make_mesh(config.mesh)
        model, params = load_model(config, mesh, tokenizer)
        engine = job.make_engine(model, mesh, config)
        sampler = Sampler(engine, tokenizer, verifier)
        for temperature, c in at.items():
            directory, settings = held / f"temperature_{temperature:g}", job.response_settings(c)
            with Journal(directory / "responses.jsonl", settings, Record) as journal:
                supervision.heartbeat(f"temperature {temperature:g}")
                found = job.evaluate_all(sampler, params, problems, c, journal)
            settings |= {"require_think": c.reward.require_think}
            job.save(directory, found, c.model.path or c.model.preset, settings)
            rows.append({"temperature": temperature, **measures(found)})
        frame = pd.DataFrame(rows)
        probe = Probe(frame, find_zones(*(frame[name].to_list() for name in ("temperature", "mean", "diversity"))))
        save(probe, held)
    return probe


def measures(found: Evaluation) -> dict[str, float]:
    """Accuracy over all problems (mean, low and high of avg@k), diversity of their responses, length, cut_off."""
    grouped = group(found.records).values()
    accuracy = estimate(np.array([np.mean([record.correct for record in records]) for records in grouped]))
    return {
        **accuracy._asdict(),
        "diversity": diversity([[record.response for record in records] for records in grouped]),
        "length": float(np.mean([record.length for record in found.records])),
        "cut_off": float(np.mean([record.finish_reason == "length" for record in found.records])),
    }


def save(probe: Probe, output: Path) -> None:
    """Writes probe.json, the rows and the zones, and temperature.png; of several processes one does."""
    if not is_writer():
        return
    rows = json.loads(probe.frame.to_json(orient="records"))
    write_json(output / "probe.json", {"temperatures": rows, "zones": probe.zones._asdict()})
    with staged(output / "temperature.png") as path:
        picture(probe).savefig(path, dpi=120)


def table(probe: Probe, title: str = "") -> Table:
    """One row a temperature, accuracies and shares in percent; a border is named by the zone that begins there."""
    result = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("temperature", "avg@k", "95%", "diversity", "tokens", "trunc"):
        result.add_column(name, justify="right")
    result.add_column("zone")
    for row in probe.frame.to_dict("records"):
        result.add_row(
            f"{row['temperature']:g}",
            f"{100 * row['mean']:.1f}",
            "?" if np.isnan(row["low"]) else f"{100 * row['low']:.1f}-{100 * row['high']:.1f}",
            f"{row['diversity']:.3f}",
            f"{row['length']:,.0f}",
            f"{100 * row['cut_off']:.1f}",
            zone_of(row["temperature"], probe.zones),
        )
    return result


def zone_of(temperature: float, zones: Zones) -> str:
    """The name of a temperature's zone. The border to exploration is exploration's, that to collapse is not yet."""
    if temperature > zones.exploration[1]:
        return "collapse"
    return (
        "exploration"
        if zones.exploration[0] <= temperature and zones.exploration[0] < zones.exploration[1]
        else "robust"
    )


def picture(probe: Probe) -> Figure:
    """Accuracy with its 95% interval and diversity over the temperature, the zones shaded and named below."""
    frame = probe.frame
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    lines = left.plot(frame.temperature, 100 * frame["mean"], "o-", color="C0", label="accuracy, with 95% interval")
    left.fill_between(frame.temperature, 100 * frame.low, 100 * frame.high, color="C0", alpha=0.2, linewidth=0)
    lines += right.plot(frame.temperature, frame.diversity, "s--", color="C4", label="diversity")
    shades = []
    for name, (first, last) in probe.zones._asdict().items():
        there = f"{first:g} to {last:g}" if first < last else "not in this grid"
        shades.append(left.axvspan(first, last, color=COLORS[name], alpha=0.18, linewidth=0, label=f"{name}: {there}"))
    for border in {*probe.zones.exploration} - {frame.temperature.min(), frame.temperature.max()}:
        left.axvline(border, color="gray", linewidth=1, linestyle=":")
    left.set(xlabel="sampling temperature", ylim=(0, 102), xticks=frame.temperature)
    left.set_ylabel("accuracy (avg@k), %", color="C0")
    right.set_ylabel("diversity: distinct 4-grams / all 4-grams", color="C4")
    right.set_ylim(0, 1.02)
    figure.legend(handles=lines, loc="outside upper center", ncols=2, frameon=False)
    figure.legend(handles=shades, loc="outside lower center", ncols=3, frameon=False, title="zones")
    return figure
