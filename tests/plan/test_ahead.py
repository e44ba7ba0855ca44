"""Compiling for TPUs and GPUs that are not there; `make test` installs the compilers into .venv/compilers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from polaris_jax.errors import UserError
from polaris_jax.models.presets import PRESETS
from polaris_jax.plan.ahead import topology_devices
from polaris_jax.plan.memory import OFFLOAD_COPIES

ROOT = Path(__file__).parents[2]
COMPILERS = Path(sys.prefix) / "compilers"
CUDNN, TRITON = "__cudnn$fmha", "__gpu$xla.gpu.triton"


def compiled(*arguments):
    """What compile_ahead.py prints, in a process of its own: a compiler stays loaded until its process ends."""
    if not (COMPILERS / "installed").exists():
        pytest.skip("no compilers for TPUs and GPUs; `make .venv/compilers/installed`")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{COMPILERS}"}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)  # what is measured is the program that will run
    script = [sys.executable, str(ROOT / "tests/plan/compile_ahead.py"), *arguments]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("topology", ["v9:2x2", "h100:many"])
def test_an_unknown_topology_is_refused_in_words(topology):
    with pytest.raises(UserError, match=rf"topology '{topology}': unknown, or its compiler is not found"):
        topology_devices(topology)


@pytest.mark.parametrize(
    ("topology", "dtype"), [("v6e:2x2", "bfloat16"), ("h100:4", "bfloat16"), ("h100:1", "float32")]
)
def test_every_device_function_of_the_tiny_model_compiles_with_its_kernels(topology, dtype):
    """In float32, as the demo has it, cuDNN has no attention, and a GPU's update takes the portable one."""
    found = compiled("functions", topology, dtype)
    calls = {name: set(function["calls"]) for name, function in found.items()}
    tpu = topology.startswith("v")
    attention = {"tpu_custom_call" if tpu else CUDNN} if dtype == "bfloat16" else set()
    assert calls == {
        "accumulate/128": attention,
        "apply": set(),
        "weight_sync": set(),
        "prefill": attention,
        "copy": set(),
        "decode": {"tpu_custom_call" if tpu else TRITON},
    }


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "h100:1"])
def test_kernels_compile_at_the_heads_of_the_4b(topology):
    found = compiled("kernels", topology)
    if topology.startswith("v"):  # forward, and backward for the queries and for the keys
        assert found["training"]["calls"] == {"tpu_custom_call": 3}
        assert found["decoding"]["calls"] == {"tpu_custom_call": 1}
    else:
        assert found["training"]["calls"] == {CUDNN: 2}
        assert found["decoding"]["calls"] == {TRITON: 2}  # the second puts parts together
    pool = found["decoding"]["arguments"]
    assert found["decoding"]["temporary"] < pool / 20, "the pages are read where they lie"


@pytest.mark.parametrize(
    ("topology", "layers", "slots", "context"),
    [
        ("h100:1", 6, 32, 8192),
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("h200:1", 6, 32, 8192),
                ("v5p:2x2x1", 6, 32, 8192),
                ("h100:1", 36, 128, 1024),
                ("v5p:2x2x1", 36, 128, 1024),
            ]
        ],
    ],
)
def test_a_decoding_step_reads_weights_and_cache_once(topology, layers, slots, context):
    """context: tokens that each slot has in the cache."""
    found = compiled("decode", topology, str(layers), str(slots), str(context))
    assert found["copied"] == []
    assert found["needed"] < found["moved"] < 1.15 * found["needed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "memory", "cache", "context"),
    [("v5p:4x4x2", 95, 30, 4), ("v6e:8x8", 31, 12, 4), ("h100:8", 72, 30, 1)],
)
def test_every_stage_of_the_4b_fits_its_devices(topology, memory, cache, context):
    """memory: GiB that a program can have of a device; on H100 what is left of 80 GB beside CUDA's own.

    context: of the last stage. The recipe's 4 would leave two parts of the parameters on 8 devices.
    """
    found = compiled("stages", topology, str(cache), str(context))
    assert {name.split("/")[0] for name in found} == {"40k", "48k", "52k"}
    for name, function in found.items():
        stage, called = name.split("/")[:2]
        tree = found[f"{stage}/apply"]["arguments"] / 4  # parameters, two moments and gradients
        beside = {"apply": 0, "accumulate": 2, "weight_sync": 2}.get(called, 3)  # trees that are there, but no argument
        need = function["arguments"] + function["temporary"] + beside * tree
        assert need / 2**30 < memory, f"{name} needs {need / 2**30:.1f} GiB"


def test_gradients_are_reduced_over_devices_in_float32():
    """Integers are counts of tokens."""
    found = compiled("reductions", "h100:4")
    dtypes = set().union(*found.values())
    assert "f32" in dtypes
    assert dtypes <= {"f32", "s32"}


def test_what_is_offloaded_is_not_in_the_devices_memory():
    """Of a 4B on one H100: both moments between updates, and the layers' inputs during a backward pass."""
    found, model = compiled("offload", "h100:1"), PRESETS["qwen3-4b"]
    tree = 4 * model.num_parameters
    plain, away = found["full/apply"], found["offload/apply"]
    assert plain["arguments"] - away["arguments"] == pytest.approx(2 * tree, rel=1e-3)
    assert away["host"]["arguments"] == pytest.approx(2 * tree, rel=1e-3)
    assert plain["host"]["arguments"] == 0
    # Each array passes through by itself: there are not more than the largest one's new moments and update at once,
    # and what the next one needs meanwhile.
    largest = 4 * model.num_hidden_layers * model.hidden_size * model.intermediate_size
    assert away["temporary"] < 4 * largest < 2 * tree
    plain, away = found["full/accumulate/16384"], found["offload/accumulate/16384"]
    inputs = model.num_hidden_layers * 16_384 * model.hidden_size * 2
    assert plain["temporary"] - away["temporary"] == pytest.approx(inputs, rel=0.05)
    assert away["host"]["temporary"] == pytest.approx(inputs, rel=0.05)
    assert plain["arguments"] == away["arguments"]


@pytest.mark.parametrize(("topology", "gib"), [("h100:1", 0.01), pytest.param("v5p:2x2x1", 4, marks=pytest.mark.slow)])
def test_int8_moments_are_updated_with_little_memory_beside_them(topology, gib):
    """Of the 4B, whose parameters are 15 GiB."""
    found = compiled("apply", topology)
    assert found["temporary"] < gib * 2**30
    if topology.startswith("h"):  # TPUs do it in loops
        assert found["once"] < found["moved"] < 1.01 * found["once"]


def test_int8_moments_pass_through_the_device_from_the_host():
    tree = 4 * PRESETS["qwen3-4b"].num_parameters
    assert compiled("apply", "h100:1", "away")["temporary"] < OFFLOAD_COPIES * tree


@pytest.mark.slow
def test_the_4b_trains_on_one_device_of_80_gb():
    """In GiB: 76 for any function with all that lies beside its arguments."""
    found = compiled("one_device", "h100:1")
    tree, pages = 4 * PRESETS["qwen3-4b"].num_parameters, 30 * 2**30
    moments = found["apply"]["arguments"] - 2 * tree
    beside = {"apply": 0, "accumulate": moments, "weight_sync": moments + tree / 2 + pages}
    for name, function in found.items():
        need = function["arguments"] + function["temporary"] + beside.get(name.split("/")[0], tree + moments)
        assert need < 76 * 2**30, f"{name} needs {need / 2**30:.1f} GiB"
