"""Memory as the compiler has it: every device function of a stage compiled for devices that need not be there."""

from __future__ import annotations

from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict

from polaris_jax.errors import UserError
from polaris_jax.models.presets import ModelConfig
from polaris_jax.plan.ahead import lower_all, topology_devices
from polaris_jax.plan.hardware import Topology
from polaris_jax.plan.memory import phase_memory
from polaris_jax.sharding.mesh import make_mesh

# function of `lower_all` -> phase, and what lies on the device meanwhile without being an argument
FUNCTIONS = {
    "weight_sync": ("weight sync", ("moments", "reference")),
    "prefill": ("prefill", ("weights", "moments", "reference")),
    "copy": ("prefill", ("weights", "moments", "reference")),
    "decode": ("decode", ("weights", "moments", "reference")),
    "forward": ("gradients", ("moments", "reference")),
    "accumulate": ("gradients", ("moments", "reference")),
    "apply": ("apply", ("reference",)),
}


def measure(model: ModelConfig, config: ConfigDict, topology: Topology) -> dict[str, float]:
    """Bytes on a device by phase, of its largest program: arguments, results, temporaries, and what else lies there.

    Takes minutes for billions of parameters. Raises UserError where no compiler for the topology is installed, or where
    the compiler finds no room for a program.
    """
    mesh = make_mesh(config.mesh, topology_devices(topology.name))
    beside = phase_memory(model, config, mesh.abstract_mesh)["apply"]
    found: dict[str, float] = {}
    for name, lowered in lower_all(model, config, mesh).items():
        phase, others = FUNCTIONS[name.partition("/")[0]]
        try:
            m = lowered.compile().memory_analysis()
        except JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(f"{topology.name}: the compiler finds no room for {name}: {str(error)[:300]}") from error
        size = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
        found[phase] = max(found.get(phase, 0), size + sum(beside.get(part, 0) for part in others))
    return found
