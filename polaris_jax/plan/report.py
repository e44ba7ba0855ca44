"""A plan for the eye: tables, JSON, and a picture of memory over the step."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from polaris_jax.files import staged, write_whole
from polaris_jax.plan.memory import PHASES
from polaris_jax.plan.planner import ORIGINAL_HOURS, Plan, StagePlan

COMPONENTS = ("weights", "moments", "reference", "sampler", "cache", "gradients", "activations", "workspace")
CHOSEN = ("updates.rows", "rollout.slots", "rollout.cache_gib")  # by the search
GIB = 2**30


def memory_table(plan: Plan) -> Table:
    """GiB on a device, and the least time of each phase."""
    columns = [name for name in COMPONENTS if any(name in s.memory[p] for s in plan.stages for p in PHASES)]
    table = Table(title=f"{plan.topology.name}: GiB a device, of which {plan.usable / GIB:.1f} can be filled")
    for heading in ("stage", "phase"):
        table.add_column(heading)
    for heading in (*columns, "in all", "measured", "PFLOP", "at least"):
        table.add_column(heading, justify="right")
    table.add_column("bound by")
    for stage in plan.stages:
        for phase in PHASES:
            parts, (limit, bound) = stage.memory[phase], stage.limit_s[phase]
            measured = f"{stage.measured[phase] / GIB:.1f}" if phase in stage.measured else "-"
            table.add_row(
                stage.name if phase == PHASES[0] else "",
                phase,
                *(f"{parts[name] / GIB:.1f}" if name in parts else "" for name in columns),
                f"{sum(parts.values()) / GIB:.1f}",
                measured,
                f"{stage.work[phase].flops * plan.topology.devices / 1e15:.3g}",
                f"{limit:.3g} s",
                bound,
                end_section=phase == PHASES[-1],
            )
    return table


def stage_table(plan: Plan) -> Table:
    """What each stage runs on, and what it takes."""
    table = Table(title=f"{plan.topology.name}: stages")
    table.add_column("")
    for stage in plan.stages:
        table.add_column(stage.name, justify="right")
    price = plan.price.usd if plan.price else None
    rows = {
        "mesh": lambda s: ", ".join(f"{axis}={size}" for axis, size in s.mesh.items() if size > 1) or "one device",
        "remat": lambda s: s.remat,
        "fits": lambda s: "no" if s.problem else "yes",
        "longest row that trains": lambda s: f"{s.longest_row:,}",
        "sequences of full length in a page pool": lambda s: f"{s.sequences:,}",
        "sequences decoded at once": lambda s: f"{s.running:,}",
        "step at the least": lambda s: f"{sum(limit for limit, _ in s.limit_s.values()):,.0f} s",
        f"step at {plan.assumed.achieved:.0%} of that speed": lambda s: f"{s.step_s:,.0f} s",
        "device-hours a step": lambda s: f"{s.device_hours:.1f}",
        "the original's, 32 H800": lambda s: f"{ORIGINAL_HOURS}",
        "steps": lambda s: f"{s.steps:,}",
        "days": lambda s: f"{s.steps * s.step_s / 86400:.1f}",
        "device-hours": lambda s: f"{s.steps * s.device_hours:,.0f}",
        "US dollars": lambda s: "no price" if price is None else f"{s.steps * s.device_hours * price:,.0f}",
    }
    for name, cell in (rows | _host_rows(plan)).items():
        table.add_row(name, *map(cell, plan.stages))
    return table


def _host_rows(plan: Plan) -> dict[str, Callable[[StagePlan], str]]:
    """What lies in the host's memory and is freed on the device, and what its way there and back costs."""
    if not any(stage.host for stage in plan.stages):
        return {}
    speed = plan.topology.hardware.host

    def freed(s: StagePlan) -> str:
        return ", ".join(f"{name} {size / GIB:.1f}" for name, size in s.host.items()) or "-"

    def seconds(s: StagePlan) -> str:
        return f"{sum(work.host for work in s.work.values()) / speed:,.1f} s"

    return {"on the host, GiB a device": freed, f"to the host and back, {speed / 1e9:.0f} GB/s one way": seconds}


def markdown(plan: Plan) -> str:
    """The plan as a Markdown table with a column for each stage, and a line with the run's sum, as the docs have it."""
    price = plan.price.usd if plan.price else None

    def mesh(s: StagePlan) -> str:
        return ", ".join([f"{axis}={size}" for axis, size in s.mesh.items() if size > 1] or ["one device"])

    def chosen(s: StagePlan) -> str:
        rows, slots, pool = (s.changes.get(key, "-") for key in CHOSEN)
        return f"{rows}, {slots}, {pool} GiB"

    rows = {
        f"{plan.usable / GIB:.1f} GiB of a device can be filled": lambda s: s.name,
        "mesh, remat": lambda s: f"{mesh(s)}, {s.remat}",
        "rows, slots, page pool": chosen,
        "decode, GiB a device": lambda s: f"{sum(s.memory['decode'].values()) / GIB:.1f}",
        "gradients, GiB a device": lambda s: f"{sum(s.memory['gradients'].values()) / GIB:.1f}",
        "longest row that trains": lambda s: f"{s.longest_row:,}",
        "decoded at once by a copy": lambda s: f"{s.running:,}",
        "decode at the least": lambda s: "{:,.0f} s, {}".format(*s.limit_s["decode"]),
        "gradients at the least": lambda s: "{:,.0f} s, {}".format(*s.limit_s["gradients"]),
        f"step, at {plan.assumed.achieved:.0%} of that speed": lambda s: f"{s.step_s:,.0f} s",
        f"device-hours a step (the original: {ORIGINAL_HOURS})": lambda s: f"{s.device_hours:.1f}",
        "days": lambda s: f"{s.steps * s.step_s / 86400:.1f}",
        "US dollars": lambda s: "no price" if price is None else f"{s.steps * s.device_hours * price:,.0f}",
    }
    rows |= _host_rows(plan)
    lines = [f"| {' | '.join([name, *map(cell, plan.stages)])} |" for name, cell in rows.items()]
    lines.insert(1, "|---" * (len(plan.stages) + 1) + "|")
    steps = sum(stage.steps for stage in plan.stages)
    cost = ""
    if plan.price:
        cost = f", {plan.device_hours * price:,.0f} US dollars at {price:.2f} ({plan.price.source}; {plan.price.date})"
    lines += ["", f"All {steps:,} steps: {plan.device_hours:,.0f} device-hours{cost}; the original: "
              f"{steps * ORIGINAL_HOURS:,.0f} GPU-hours."]  # fmt: skip
    return "\n".join(lines) + "\n"


def notes(plan: Plan) -> list[str]:
    """What the search found, what does not fit, the run's sum, and what is measured, modelled and assumed."""
    a, lines = plan.assumed, [stage.problem for stage in plan.stages if stage.problem]
    for stage in plan.stages:
        if stage.changes and not stage.problem:
            lines.append(
                f"{stage.name}: " + " ".join(f"--config.{key}={value}" for key, value in stage.changes.items())
            )
    if not any(stage.problem for stage in plan.stages):
        steps = sum(stage.steps for stage in plan.stages)
        cost = f", {plan.device_hours * plan.price.usd:,.0f} US dollars" if plan.price else ""
        lines.append(f"All {steps:,} steps: {plan.device_hours:,.0f} device-hours{cost}; the original: "
                     f"{steps * ORIGINAL_HOURS:,.0f} GPU-hours at {ORIGINAL_HOURS} a step.")  # fmt: skip
    if plan.price:
        lines.append(f"Price: {plan.price.usd:.2f} a device and hour ({plan.price.source}; {plan.price.date}).")
    compiled = any(stage.measured for stage in plan.stages)
    lines.append(
        "Measured: " + ("memory in the column of that name, by compiling for the topology." if compiled else "nothing.")
    )
    lines.append(
        "Counted from the model's shape: FLOPs. Modelled: memory by component, and time, by the roofline. Not in it: "
        "evaluation, temperature search, the measurement of difficulty, restarts."
    )
    lines.append(
        f"Assumed: mean response {a.mean_response:.0%} of the limit, prompts of {a.prompt} tokens, rows "
        f"{a.packing:.0%} full, {a.achieved:.0%} of the roofline's speed."
    )
    return lines


def to_json(plan: Plan) -> str:
    """All numbers of the plan."""
    return json.dumps(dataclasses.asdict(plan) | {"original_hours_a_step": ORIGINAL_HOURS}, indent=2) + "\n"


def picture(plan: Plan) -> Figure:
    """Memory of a device over the step, a panel for each stage: bars by phase, with the time of each.

    Times are those of the stage's title: at the assumed share of the roofline's speed.
    """
    figure = Figure(figsize=(max(9.0, 4.6 * len(plan.stages)), 4.6), layout="constrained")
    panels = figure.subplots(1, len(plan.stages), sharey=True, squeeze=False)[0]
    colours = dict(zip(COMPONENTS, colormaps["tab10"].colors, strict=False))
    largest = max(sum(stage.memory[phase].values()) for stage in plan.stages for phase in PHASES)
    unit, name = (GIB, "GiB") if largest >= GIB else (2**20, "MiB")
    for panel, stage in zip(panels, plan.stages, strict=True):
        _bars(panel, stage, colours, unit, plan.assumed.achieved)
        if plan.usable < 3 * largest:  # else it would press the bars flat
            panel.axhline(plan.usable / unit, color="black", linewidth=1, linestyle="--")
        panel.set_title(f"{stage.name}: {duration(stage.step_s)} a step")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"{name} a device, of {plan.usable / unit:,.0f} {name} that can be filled")
    figure.suptitle(f"{plan.topology.name}, times at {plan.assumed.achieved:.0%} of the roofline's speed")
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    return figure


def duration(seconds: float) -> str:
    """Such as 11 us, 2.6 ms, 48 s, 19 min, 1 h 12 min or 3.1 days."""
    for most, size, unit in ((1e-3, 1e-6, "us"), (1, 1e-3, "ms"), (120, 1, "s")):
        if seconds < most:
            return (
                f"{float(f'{seconds / size:.2g}'):g} {unit}" if seconds < 100 * size else f"{seconds / size:.0f} {unit}"
            )
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min"
    return f"{seconds / 86400:.1f} days"


def _bars(panel: Axes, stage: StagePlan, colours: dict, unit: float, achieved: float) -> None:
    bottoms = [0.0] * len(PHASES)
    for name in COMPONENTS:
        heights = [stage.memory[phase].get(name, 0.0) / unit for phase in PHASES]
        if any(heights):
            panel.bar(range(len(PHASES)), heights, 0.9, bottoms, label=name, color=colours[name])
            bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place, top in enumerate(bottoms):
        panel.annotate(f"{top:,.3g}", (place, top), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    times = [duration(stage.limit_s[phase][0] / achieved) for phase in PHASES]
    panel.set_xticks(range(len(PHASES)), [f"{p}\n{t}" for p, t in zip(PHASES, times, strict=True)], fontsize=8)


def save(plan: Plan, directory: str | Path) -> None:
    """Writes plan.json and plan.png."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "plan.json", to_json(plan))
    with staged(directory / "plan.png") as path:
        picture(plan).savefig(path, dpi=120)
