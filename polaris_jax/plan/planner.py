"""Plans: each stage of a config on a topology, with the config's mesh or with the fastest one that fits."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from polaris_jax import config as configs
from polaris_jax.errors import UserError
from polaris_jax.hf.config import config_from_hf, config_from_json, read_json
from polaris_jax.models.presets import PRESETS, ModelConfig
from polaris_jax.models.transformer import REMAT_POLICIES
from polaris_jax.plan.hardware import PRICES, Price, Topology, load_price
from polaris_jax.plan.measure import measure
from polaris_jax.plan.memory import (
    PHASES,
    backward_memory,
    cache_pages,
    host_memory,
    phase_memory,
    plan_mesh,
    sequence_pages,
)
from polaris_jax.plan.roofline import (
    Assumptions,
    Work,
    axis_span,
    mean_held,
    phase_work,
    replica_sequences,
    running,
    seconds,
)
from polaris_jax.rollout.pools import page_bytes
from polaris_jax.sharding.mesh import AXES

ORIGINAL_HOURS = 30.7  # GPU-hours a step of the original: 32 H800 for 28 days, 700 steps (write-up of June 2025)


@dataclass(frozen=True)
class StagePlan:
    """One stage. Memory in bytes a device, by phase and component; times in seconds a step.

    host: bytes a device that lie in its host's memory instead, by component. changes: what the search set in the
    config. sequences: of full length, that the page pool of a copy of the sampler holds. running: decoded at once, at
    the assumed lengths. longest_row: slots of the longest row that fits in the update. measured: total memory by phase
    as the compiler has it, empty where nothing was compiled. limit_s: of each phase by the roofline, and by what it is
    bound. step_s: of the step, at the assumed share of the roofline's speed. problem: why the stage does not fit; empty
    where it does.
    """

    name: str
    steps: int
    mesh: dict[str, int]
    remat: str
    changes: dict[str, object]
    memory: dict[str, dict[str, float]]
    host: dict[str, float]
    measured: dict[str, float]
    sequences: int
    running: int
    longest_row: int
    work: dict[str, Work]
    limit_s: dict[str, tuple[float, str]]
    step_s: float
    device_hours: float
    problem: str


@dataclass(frozen=True)
class Plan:
    """A run's stages on a topology. usable: bytes of a device that may be filled."""

    topology: Topology
    model: ModelConfig
    stages: list[StagePlan]
    assumed: Assumptions
    price: Price | None
    usable: float

    @property
    def device_hours(self) -> float:
        """Of all steps of all stages."""
        return sum(stage.steps * stage.device_hours for stage in self.stages)


def plan(
    config: ConfigDict,
    topology: Topology,
    *,
    search: bool = False,
    compiled: bool = False,
    assumed: Assumptions = Assumptions(),  # noqa: B008
    prices: str | Path = PRICES,
) -> Plan:
    """Plans every stage of `config`.

    search: tries meshes and remat policies, with slots and page pool to match. compiled: measures what fits by
    compiling it for the topology, see `measure`. Raises UserError, with the arithmetic, where no stage fits, and for a
    mistake in config, topology or price file.
    """
    configs.check(config)
    if not 0 < assumed.mean_response < 1:
        raise UserError(f"--mean_response: expected a share of the limit below 1, found {assumed.mean_response}")
    price = load_price(topology.kind, prices)
    plan_one = fastest if search else plan_stage
    stages = [plan_one(name, stage, topology, assumed) for name, stage in configs.stages(config)]
    if all(stage.problem for stage in stages):
        raise UserError(stages[0].problem)
    if compiled:
        stages = [
            stage if stage.problem else _measured(stage, config, topology)
            for stage, (_, config) in zip(stages, configs.stages(config), strict=True)
        ]
    return Plan(topology, model_shape(config), stages, assumed, price, topology.usable)


def model_shape(config: ConfigDict) -> ModelConfig:
    """The model's shape without its weights; a hub name that contains a preset's is taken for that preset."""
    c, path = config.model, Path(config.model.path)
    if (path / "config.json").is_file() and c.path:
        model = config_from_hf(read_json(path / "config.json"), path / "config.json")
    elif (path / "model.json").is_file() and c.path:
        model = config_from_json((path / "model.json").read_text(encoding="utf-8"), path / "model.json")
    else:
        named = [name for name in PRESETS if (name in path.name.lower() if c.path else name == c.preset)]
        if not named:
            raise UserError(
                f"config.model: path {c.path!r} is no model's directory and names none of {', '.join(PRESETS)}, and "
                f"preset is {c.preset!r}"
            )
        model = PRESETS[max(named, key=len)]
    return model.replace(dtype=c.dtype, remat=c.remat, lora=configs.lora(config))


def plan_stage(
    name: str, config: ConfigDict, topology: Topology, assumed: Assumptions, changes: dict[str, object] | None = None
) -> StagePlan:
    """The plan of one stage as its config has it. Raises UserError where mesh, rows and topology do not go together."""
    model, mesh = model_shape(config), plan_mesh(config.mesh, topology.devices)
    for length in config.updates.row_lengths:
        if length % mesh.shape["context"]:
            raise UserError(
                f"config.updates.row_lengths: {length} does not divide by mesh.context={mesh.shape['context']}"
            )
    if mesh.shape["tensor"] > 1 and axis_span(mesh, "tensor") > topology.hardware.machine:
        raise UserError(
            f"config.mesh: tensor={mesh.shape['tensor']} x context={mesh.shape['context']} spans machines of "
            f"{topology.hardware.machine} devices; sampling needs the tensor axis in one"
        )
    memory = phase_memory(model, config, mesh, topology.hardware.platform)
    work = phase_work(model, config, mesh, assumed)
    fixed = sum(size for part, size in memory["gradients"].items() if part not in ("activations", "workspace"))
    limit_s = {phase: seconds(work[phase], topology.hardware, mesh, model.dtype) for phase in PHASES}
    step_s = sum(limit for limit, _ in limit_s.values()) / assumed.achieved
    stage = StagePlan(
        name=name,
        steps=config.training.steps,
        mesh=dict(mesh.shape),
        remat=model.remat,
        changes=changes or {},
        memory=memory,
        host=host_memory(model, config, mesh),
        measured={},
        sequences=(cache_pages(model, config, mesh) - 1) // sequence_pages(config),
        running=running(model, config, mesh, assumed),
        longest_row=longest_row(model, config, mesh, topology.usable - fixed),
        work=work,
        limit_s=limit_s,
        step_s=step_s,
        device_hours=step_s * topology.devices / 3600,
        problem="",
    )
    return replace(stage, problem=_problem(stage, topology))


def _measured(stage: StagePlan, config: ConfigDict, topology: Topology) -> StagePlan:
    config = configs.override(config, stage.changes)
    stage = replace(stage, measured=measure(model_shape(config), config, topology))
    return replace(stage, problem=_problem(stage, topology))


def _problem(stage: StagePlan, topology: Topology) -> str:
    where = ", ".join(f"{axis}={size}" for axis, size in stage.mesh.items() if size > 1) or "one device"
    where = f"stage {stage.name} on {topology.name} ({where}, remat {stage.remat})"
    if stage.measured:
        phase, total = max(stage.measured.items(), key=lambda item: item[1])
        if total <= topology.usable:
            return ""
        return (
            f"{where} does not fit: the compiler needs {total / 2**30:.2f} GiB a device for {phase}, of which "
            f"{topology.usable / 2**30:.2f} can be filled"
        )
    phase, parts = max(stage.memory.items(), key=lambda item: sum(item[1].values()))
    if (total := sum(parts.values())) > topology.usable:
        listed = " + ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
        return (
            f"{where} does not fit: {phase} needs {listed} = {total / 2**30:.2f} GiB a device, of which "
            f"{topology.usable / 2**30:.2f} can be filled; the longest row that fits has {stage.longest_row} tokens"
        )
    if stage.sequences < 1:
        cache = stage.memory["decode"]["cache"] / 2**30
        return f"{where} does not fit: the page pool of {cache:.2f} GiB does not hold one sequence of full length"
    return ""


def longest_row(model: ModelConfig, config: ConfigDict, mesh: AbstractMesh, room: float) -> int:
    """Slots of the longest row whose backward pass fits, in steps of 512 slots a device; 0 where none does.

    room: bytes beside the training state and the gradients.
    """
    unit = 512 * mesh.shape["context"]

    def over(units: int) -> bool:
        return sum(backward_memory(model, config, mesh, units * unit)) > room

    return unit * bisect.bisect_left(range(1, 4096), True, key=over)


def fastest(name: str, config: ConfigDict, topology: Topology, assumed: Assumptions) -> StagePlan:
    """The fastest plan that fits, over meshes and remat policies; the one nearest to fitting where none does.

    Of plans as fast it is the one that keeps least on the host.
    """
    found = []
    for mesh, remat in itertools.product(meshes(config, topology), REMAT_POLICIES):
        changes = {f"mesh.{axis}": size for axis, size in mesh.items()} | {"model.remat": remat}
        changes["updates.rows"] = mesh["data"] * mesh["fsdp"]
        try:
            changes |= _sampling(configs.override(config, changes), topology, assumed)
            found.append(plan_stage(name, configs.override(config, changes), topology, assumed, changes))
        except UserError:  # the mesh does not divide parameters or rows
            continue
    if not found:
        raise UserError(f"stage {name}: no mesh of {topology.devices} devices divides parameters, prompts and rows")
    fitting = [stage for stage in found if not stage.problem]
    if fitting:
        return min(fitting, key=lambda stage: (stage.step_s, sum(stage.host.values())))
    return min(found, key=lambda stage: max(sum(parts.values()) for parts in stage.memory.values()))


def meshes(config: ConfigDict, topology: Topology) -> Iterator[dict[str, int]]:
    """Every mesh of the devices whose rows divide over `context` and whose kv heads divide over `tensor`."""
    kv_heads = model_shape(config).num_key_value_heads
    sizes = [size for size in range(1, topology.devices + 1) if topology.devices % size == 0]
    for data, fsdp, tensor in itertools.product(sizes, repeat=3):
        context, left = divmod(topology.devices, data * fsdp * tensor)
        if context and not left and kv_heads % tensor == 0:
            yield dict(zip(AXES, (data, fsdp, tensor, context), strict=True))


def _sampling(config: ConfigDict, topology: Topology, assumed: Assumptions) -> dict[str, object]:
    """Slots and page pool for the memory that is left.

    Slots are twice what the pool holds on average, since sequences are short at first.
    """
    model, mesh = model_shape(config), plan_mesh(config.mesh, topology.devices)
    page, most = page_bytes(model, mesh, config.rollout), replica_sequences(config, mesh)

    def left(slots: int) -> float:
        changed = configs.override(config, {"rollout.slots": slots})
        memory = phase_memory(model, changed, mesh, topology.hardware.platform)
        return topology.usable - max(sum(memory[p].values()) - memory[p]["cache"] for p in ("prefill", "decode"))

    pages = left(1) // page
    held = config.rollout.page_size * pages / mean_held(config, assumed)
    slots = max(1, min(most, int(2 * held)))
    gib = min(left(slots), (most * sequence_pages(config) + 1) * page) / 2**30
    return {"rollout.slots": slots, "rollout.cache_gib": max(math.floor(gib * 100) / 100, 0.01)}
