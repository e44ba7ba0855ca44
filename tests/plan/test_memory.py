"""The memory model: by hand on a toy model, and against what XLA says on 8 simulated devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import tiny
from polaris_jax.models.presets import LORA_TARGETS, PRESETS, Lora
from polaris_jax.plan.ahead import lower_training
from polaris_jax.plan.memory import (
    FUSED_COPIES,
    IN_FLIGHT,
    MASTER,
    OFFLOAD_COPIES,
    PHASES,
    host_memory,
    kept_bytes,
    parameter_bytes,
    phase_memory,
    plan_mesh,
)
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training import platform
from tests.plan.compiled_memory import ADAPTED, MODEL, config

SCRIPT = Path(__file__).with_name("compiled_memory.py")
TOLERANCE = 0.15


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_what_the_backward_pass_keeps_of_a_layer(remat):
    """full: the layer's input; dots: also the products q, k, v, o, gate and up, in the compute dtype."""
    model = PRESETS["qwen3-4b"].replace(remat=remat)
    by_hand = {"full": 2560, "dots": 2560 + 4096 + 2 * 1024 + 2560 + 2 * 9728}
    assert kept_bytes(model, 16_384) == 2 * by_hand[remat]


def test_parameters_lie_as_the_rules_say():
    """Everything is split over fsdp and tensor but the norms and the biases' and heads' small vectors."""
    whole = parameter_bytes(MODEL, plan_mesh({"fsdp": 1}, 1), MASTER)
    assert whole == MASTER * MODEL.num_parameters
    norms = MASTER * (5 * (2 * 256 + 2 * 32) + 256)
    split = parameter_bytes(MODEL, plan_mesh({"fsdp": 4, "tensor": 2}, 8), MASTER)
    assert split == (whole - norms) / 8 + norms


@pytest.mark.parametrize("axis", ["fsdp", "tensor", "context"])
def test_more_devices_mean_less_memory_on_each(axis):
    totals = []
    for size in (1, 2, 4):
        memory = phase_memory(MODEL, config(4096, 4), plan_mesh({"fsdp": 1} | {axis: size}, size))
        totals.append(sum(memory["gradients"].values()))
    assert totals[0] > totals[1] > totals[2]


def test_a_reference_model_is_counted():
    c = tiny.get_config()
    mesh = plan_mesh(c.mesh, 4)
    without = phase_memory(MODEL, c, mesh)
    c.algorithm.kl = 0.1
    for phase, parts in phase_memory(MODEL, c, mesh).items():
        assert sum(parts.values()) - sum(without[phase].values()) == parts["weights"] == parts["reference"]


def test_what_is_offloaded_is_counted_on_the_host():
    c, mesh = config(1024, 4), plan_mesh({"fsdp": 4}, 4)
    beside, kept = phase_memory(MODEL.replace(remat="full"), c, mesh), 5 * 1024 * 256 * 4
    assert host_memory(MODEL.replace(remat="full"), c, mesh) == {}
    c.optimizer.offload = True
    away, model = phase_memory(MODEL.replace(remat="offload"), c, mesh), MODEL.replace(remat="offload")
    found = host_memory(model, c, mesh)
    assert found == {"moments": beside["decode"]["moments"], "activations": kept}
    for phase in PHASES:
        freed = sum(beside[phase].values()) - sum(away[phase].values())
        layers = kept * (5 - IN_FLIGHT) / 5 if phase == "gradients" else 0
        passing = (OFFLOAD_COPIES - FUSED_COPIES) * found["moments"] / 2 if phase == "apply" else 0
        assert freed == pytest.approx(found["moments"] + layers - passing, rel=1e-3), phase


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_weights_in_8_bits_halve_the_projections_of_the_sampler(weights):
    model, c, mesh = PRESETS["qwen3-4b"].replace(dtype="bfloat16"), tiny.get_config(), plan_mesh({"tensor": 2}, 2)
    whole = phase_memory(model, c, mesh)["decode"]
    c.rollout.weights = weights
    codes = phase_memory(model, c, mesh)["decode"]
    embedding = 2 * model.vocab_size * model.hidden_size / 2
    assert codes["sampler"] - embedding == pytest.approx((whole["sampler"] - embedding) / 2, rel=1e-3)
    assert {**codes, "sampler": 0} == {**whole, "sampler": 0}


def check_against_xla(mesh, remat, row, model=MODEL):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, str(SCRIPT), json.dumps(mesh), remat, str(row), str(int(model == ADAPTED))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    planned = plan_mesh(mesh, 8)
    c = config(row, planned.shape["data"] * planned.shape["fsdp"])
    memory = phase_memory(model.replace(remat=remat), c, planned, "cpu")
    gradients, apply = ({**memory[phase], "cache": 0} for phase in ("gradients", "apply"))  # the programs have no cache
    # the moments are no arguments of the accumulation, they lie there all the same
    assert found[f"accumulate/{row}"]["peak"] + gradients["moments"] == pytest.approx(
        sum(gradients.values()), rel=TOLERANCE
    )
    arguments = apply["weights"] + apply["moments"] + apply["gradients"]
    assert found["apply"]["arguments"] == pytest.approx(arguments, rel=1e-3)
    assert found["apply"]["peak"] == pytest.approx(sum(apply.values()), rel=TOLERANCE)


@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_xla_needs_what_the_model_says_on_one_cpu_device(moments, monkeypatch):
    """Of a model whose layers run in a loop and whose large parameters are updated in pieces."""
    monkeypatch.setitem(platform._PIECE, "cpu", 2**18)
    model, mesh = MODEL.replace(remat="full"), make_mesh({}, jax.devices()[:1])
    c = config(512, 1)
    c.optimizer.moments = moments
    memory = phase_memory(model, c, plan_mesh({}, 1), "cpu")
    for phase, name in (("gradients", "accumulate/512"), ("apply", "apply")):
        m = lower_training(model, c, mesh)[name].compile().memory_analysis()
        peak = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
        beside = memory[phase]["cache"] + (memory[phase]["moments"] if phase == "gradients" else 0)
        assert peak + beside == pytest.approx(sum(memory[phase].values()), rel=TOLERANCE), phase


@pytest.mark.parametrize(
    ("change", "platform", "own", "transposed"),
    [
        ({}, "cpu", 0, MASTER),
        ({"dtype": "bfloat16"}, "cpu", 0.5, MASTER / 2),
        ({"num_hidden_layers": 4}, "cpu", 1, MASTER),
        ({}, "tpu", 1, 0),
    ],
)
def test_a_sampler_that_reads_the_trainers_weights_has_only_the_unembedding(change, platform, own, transposed):
    """own: of all weights, as a share of the trainer's. transposed: bytes of each number of another unembedding."""
    model = MODEL.replace(**change)
    parts = phase_memory(model, tiny.get_config(), plan_mesh({}, 1), platform)["decode"]
    assert parts["sampler"] == own * parts["weights"] + transposed * model.vocab_size * model.hidden_size


def test_xla_needs_what_the_model_says():
    check_against_xla({"fsdp": 4, "tensor": 2}, "full", 1024)


def test_xla_needs_what_the_model_says_of_adapters():
    """No gradient and no float32 copy of the base: its codes, and of one layer at a time what they stand for."""
    check_against_xla({"data": 8}, "full", 2048, ADAPTED)


@pytest.mark.parametrize("weights", ["", "int8"])
def test_adapters_take_their_base_once_and_themselves_four_times(weights):
    model, c, mesh = PRESETS["qwen3-4b"], tiny.get_config(), plan_mesh({"fsdp": 1}, 1)
    c.algorithm.kl = 0.1
    adapted = model.replace(lora=Lora(16, 32.0, LORA_TARGETS, weights))
    memory, whole = phase_memory(adapted, c, mesh), phase_memory(model, c, mesh)
    adapters = MASTER * adapted.num_adapter_parameters
    table = model.vocab_size * model.hidden_size
    base = 2 * table + (model.num_parameters - table) * (1 if weights else 2)
    assert memory["apply"]["weights"] - adapters == pytest.approx(base, rel=2e-3)  # scales, norms and biases
    assert memory["apply"]["moments"] == pytest.approx(2 * adapters, rel=1e-6)
    assert memory["gradients"]["gradients"] == 2 * adapters
    assert "reference" not in memory["apply"]
    assert memory["decode"]["sampler"] == whole["decode"]["sampler"]


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 4, "context": 2}])
def test_xla_needs_what_the_model_says_on_other_meshes(mesh, remat):
    check_against_xla(mesh, remat, 4096)
