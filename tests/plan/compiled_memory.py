"""Run by the tests: prints what XLA says that each function of an update needs on each of 8 simulated devices.

compiled_memory.py MESH REMAT ROW LORA, the mesh as json; LORA: 1 for adapters beside an int8 base
"""

import json
import sys

import jax
from ml_collections import ConfigDict

from configs import tiny
from polaris_jax.models.presets import LORA_TARGETS, Lora, ModelConfig
from polaris_jax.plan.ahead import lower_training
from polaris_jax.sharding.mesh import make_mesh

MODEL = ModelConfig(4096, 256, 768, 5, 8, 4, 32, rope_theta=100.0, dtype="float32")
ADAPTED = MODEL.replace(lora=Lora(16, 32.0, LORA_TARGETS, "int8"))


def config(row: int, rows: int) -> ConfigDict:
    c = tiny.get_config()
    c.updates.row_lengths, c.updates.rows = (row,), rows
    return c


def main():
    shape, remat, row = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    mesh = make_mesh(shape, jax.devices())
    c = config(row, mesh.shape["data"] * mesh.shape["fsdp"])
    model = ADAPTED if int(sys.argv[4]) else MODEL
    for name, lowered in lower_training(model.replace(remat=remat), c, mesh).items():
        m = lowered.compile().memory_analysis()
        peak = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
        print(json.dumps({"name": name, "peak": peak, "arguments": m.argument_size_in_bytes}), flush=True)


if __name__ == "__main__":
    main()
