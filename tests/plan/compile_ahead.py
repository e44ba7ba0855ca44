"""Run by test_ahead.py, where the compilers are importable: compiles for devices that are not there, prints JSON.

compile_ahead.py functions TOPOLOGY DTYPE   the tiny model's device functions, of four devices or of one
compile_ahead.py kernels TOPOLOGY       attention, with its gradient, and paged decoding at 4B's heads
compile_ahead.py apply TOPOLOGY [away]  4B's optimizer with int8 moments, or such on the host, on one device: its
                                        temporaries, the bytes that it moves where it has no loop, and those of all that
                                        it reads or writes, once
compile_ahead.py one_device TOPOLOGY   4B's device functions with int8 moments and rows of 16K, of one device
compile_ahead.py offload TOPOLOGY      4B's update, rows of 16K, with moments and activations on the host and without
compile_ahead.py reductions TOPOLOGY   dtypes in which a small bfloat16 model's gradients are reduced over four devices
compile_ahead.py stages TOPOLOGY GIB N  4B's device functions in each stage, with so large a page pool and at most N
                                        parts of a row
compile_ahead.py decode TOPOLOGY LAYERS SLOTS CONTEXT   a decoding step of a model as wide as 4B: the bytes that it
                                        moves, and those of weights, cache and logits; copies of a layer's weights

Else, for each function: how often it calls which kernels, and the bytes of its arguments and temporaries on one device
and in its host's memory.
"""

import json
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from polaris_jax import config as configs
from polaris_jax.models.presets import PRESETS
from polaris_jax.models.quantise import weight_bytes
from polaris_jax.ops.attention import sharded_attention
from polaris_jax.ops.paged_attention import Cache, paged_attention
from polaris_jax.plan.ahead import cudnn_of, lower_all, lower_sampling, lower_training, topology_devices
from polaris_jax.rollout.pools import page_bytes, pool_pages
from polaris_jax.sharding.mesh import make_mesh
from tests.plan.loop_bytes import bytes_moved, entry, loop_body, size

CONFIGS = Path(__file__).parents[2] / "configs"
KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "__cudnn$fmha")


def measured(lowered):
    """What is told of each function; stages share programs, and each program is compiled once."""
    programs = {name: function.as_text() for name, function in lowered.items()}
    compiled = {program: lowered[name].compile() for name, program in programs.items()}
    return {name: sizes(compiled[program]) for name, program in programs.items()}


def sizes(compiled):
    """Its calls of kernels, and the bytes of its arguments and temporaries on one device."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    calls = Counter({kernel: text.count(f'custom_call_target="{kernel}') for kernel in KERNELS})
    host = {"arguments": memory.host_argument_size_in_bytes, "temporary": memory.host_temp_size_in_bytes}
    found = {"arguments": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes}
    return {"calls": +calls, **found, "host": host}


def functions(topology, dtype):
    """Each device function of the tiny model. Eight slots, so that it compiles fast."""
    config = configs.load(CONFIGS / "tiny.py", {"model.dtype": dtype, "rollout.slots": 8, "updates.rows": 4})
    devices = topology_devices(topology)[:4]
    mesh = make_mesh({"fsdp": 2, "tensor": 2} if len(devices) == 4 else {}, devices)
    return lower_all(PRESETS["tiny"].replace(dtype=dtype), config, mesh)


def kernels(topology):
    """Those of the update and of decoding, with 4B's heads."""
    mesh = make_mesh({}, topology_devices(topology)[:1])
    here = jax.NamedSharding(mesh, jax.P())
    array = partial(jax.ShapeDtypeStruct, sharding=here)
    numbers = array((2, 1024), jnp.int32)
    q, k = (array((2, 1024, heads, 128), jnp.bfloat16) for heads in (32, 8))
    value = lambda *x: jnp.sum(sharded_attention(mesh)(*x)[0].astype(jnp.float32))  # noqa: E731
    pool, new = array((3, 50, 64, 8, 128), jnp.bfloat16), array((2, 16, 8, 128), jnp.bfloat16)
    table, lengths = array((2, 24), jnp.int32), array((2,), jnp.int32)
    platform = mesh.devices.flat[0].platform
    with cudnn_of(mesh), jax.set_mesh(mesh):
        return {
            "training": jax.jit(jax.grad(value, argnums=(0, 1, 2))).lower(q, k, k, numbers, numbers),
            "decoding": jax.jit(
                lambda q, pages, table, lengths, new, seen: paged_attention(
                    platform, q, Cache(pages, table, lengths), 1, new, seen
                )
            ).lower(
                array((2, 1, 32, 128), jnp.bfloat16), (pool, pool), table, lengths, (new, new), array((1, 1, 16), bool)
            ),
        }


def one_device(topology):
    """One row of 16K at a time, remat full."""
    keys = {"optimizer.moments": "int8", "updates.rows": 1, "updates.row_lengths": (16_384,), "model.remat": "full"}
    config = configs.load(CONFIGS / "polaris_4b.py", keys)
    model = PRESETS["qwen3-4b"].replace(dtype=config.model.dtype, remat="full")
    return lower_all(model, config, make_mesh(config.mesh, topology_devices(topology)))


def apply(topology, away=""):
    """The gradient is read for its norm and again for the update; parameters and moments are read and written."""
    keys = {"optimizer.moments": "int8", "optimizer.offload": bool(away), "updates.row_lengths": (1024,)}
    config = configs.load(CONFIGS / "polaris_4b.py", keys)
    model = PRESETS["qwen3-4b"].replace(dtype=config.model.dtype, remat="full")
    mesh = make_mesh({}, topology_devices(topology)[:1])
    with cudnn_of(mesh):
        compiled = lower_training(model, config, mesh)["apply"].compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    moved = sum(bytes_moved(text, entry(text), {}).values())
    return {"temporary": memory.temp_size_in_bytes, "moved": moved, "once": 2 * memory.argument_size_in_bytes}


def offload(topology):
    """Moments in float32; remat full, and the same with what it keeps on the host."""
    lowered = {}
    for away, remat in ((False, "full"), (True, "offload")):
        keys = {"optimizer.offload": away, "updates.rows": 1, "updates.row_lengths": (16_384,), "model.remat": remat}
        config = configs.load(CONFIGS / "polaris_4b.py", keys)
        model = PRESETS["qwen3-4b"].replace(dtype=config.model.dtype, remat=remat)
        mesh = make_mesh(config.mesh, topology_devices(topology))
        with cudnn_of(mesh):
            lowered |= {f"{remat}/{name}": x for name, x in lower_training(model, config, mesh).items()}
    return lowered


def reductions(topology):
    """For each kind of sum over devices in the gradient's program the dtypes of what is summed."""
    config = configs.load(CONFIGS / "tiny.py", {"model.dtype": "bfloat16", "updates.rows": 4})
    mesh = make_mesh({"fsdp": 4}, topology_devices(topology)[:4])
    model = PRESETS["tiny"].replace(dtype="bfloat16", attention_bias=True)
    with cudnn_of(mesh):
        lowered = lower_training(model, config, mesh)["accumulate/128"]
    found = {}
    for shapes, kind in re.findall(r" = (.*?) (all-reduce|reduce-scatter)(?:-start)?\(", lowered.compile().as_text()):
        found.setdefault(kind, set()).update(re.findall(r"(\w+)\[", shapes))
    return {kind: sorted(dtypes) for kind, dtypes in found.items()}


def stages(topology, cache_gib, context):
    """Each device function of the 4B in each stage, over all devices; of the update, rows of the longest kind."""
    config = configs.load(CONFIGS / "polaris_4b.py", {"rollout.cache_gib": float(cache_gib)})
    lowered = {}
    for name, stage in configs.stages(config):
        model = PRESETS["qwen3-4b"].replace(dtype=stage.model.dtype, remat=stage.model.remat)
        stage.mesh.context = min(stage.mesh.context, int(context))
        stage.updates.row_lengths = stage.updates.row_lengths[-1:]
        mesh = make_mesh(stage.mesh, topology_devices(topology))
        lowered |= {f"{name}/{key}": value for key, value in lower_all(model, stage, mesh).items()}
    return lowered


def written(i):
    """Bytes that a copy writes to the device's memory; one to a TPU's vector memory is how a product reads."""
    return 0 if i.op == "copy-start" and "S(1)" in i.result else size(i.result)


def decode(topology, layers, slots, context):
    """A step of decoding, every slot with so many tokens in the cache."""
    slots = int(slots)
    overrides = {"rollout.slots": slots, "rollout.max_response_tokens": 40_000}
    config = configs.load(CONFIGS / "polaris_4b.py", overrides)
    model = PRESETS["qwen3-4b"].replace(dtype="bfloat16", num_hidden_layers=int(layers))
    mesh = make_mesh({}, topology_devices(topology)[:1])
    with cudnn_of(mesh):
        text = lower_sampling(model, config, mesh)["decode"].compile().as_text()
    page = page_bytes(model, mesh, config.rollout)
    cache = slots * int(context) * page // config.rollout.page_size
    # Of the new tokens GPUs read those that there are, in the mean of a call's steps half; TPUs read all.
    pool = f"bf16[{layers},{pool_pages(model, mesh, config.rollout, 0)},"
    new = f"bf16[{slots},{config.rollout.tokens_per_call},"
    moved = bytes_moved(text, loop_body(text), {pool: 0, new: 1 if topology.startswith("v") else 0.5})
    smallest = 2 * model.hidden_size * model.num_key_value_heads * model.head_dim  # bytes of a layer's k or v
    slots_rows = f"[{slots},"  # what has a row for each slot is no weight
    copies = [i for i in loop_body(text) if i.op != "copy-done" and ("copy" in i.op or "slice" in i.name)]
    return {
        "moved": sum(moved.values()) + cache,
        "needed": weight_bytes(model, "") + cache + 4 * slots * model.vocab_size,
        "copied": [i.name for i in copies if slots_rows not in i.result and written(i) >= smallest],
    }


if __name__ == "__main__":
    plain = {"reductions": reductions, "decode": decode, "apply": apply}
    counted = {"functions": functions, "kernels": kernels, "stages": stages}
    counted |= {"one_device": one_device, "offload": offload}
    found = (plain | counted)[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(found if sys.argv[1] in plain else measured(found)))
