"""Work and time: by hand on toy numbers, FLOPs against a count of the products in the traced program."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from polaris_jax.models.flops import forward_flops
from polaris_jax.models.presets import PRESETS
from polaris_jax.ops.token_logprobs import CHUNKS
from polaris_jax.plan.hardware import HARDWARE, Hardware
from polaris_jax.plan.memory import plan_mesh
from polaris_jax.plan.roofline import (
    COLLECTIVE_S,
    Assumptions,
    Work,
    axis_speed,
    decode_steps,
    lengths,
    phase_work,
    recomputed_flops,
    running,
    seconds,
)
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import param_shapes
from polaris_jax.training.update import make_logprobs
from tests.conftest import smaller_config

TINY = PRESETS["tiny"]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_lengths_have_their_mean_and_mean_square(share):
    drawn = 1000 * (np.arange(200_000) + 0.5) ** (1 / share - 1) / 200_000 ** (1 / share - 1)
    assert lengths(1000, share) == (pytest.approx(drawn.mean(), rel=1e-3), pytest.approx((drawn**2).mean(), rel=1e-3))


def product_flops(jaxpr):
    """FLOPs of all matrix products in a program, the body of a scan counted as often as it runs.

    That of a `while` is one over chunks of tokens, all of which are trained on here.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(sizes)
        times = CHUNKS if equation.primitive.name == "while" else equation.params.get("length", 1)
        branches = equation.params.get("branches")  # one a platform
        found = jax.tree.leaves(list(branches[:1] if branches else equation.params.values()))
        inner = (getattr(value, "jaxpr", value) for value in found)
        total += times * sum(product_flops(program) for program in inner if hasattr(program, "eqns"))
    return total


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_flops_are_those_of_the_program(remat):
    """A row of 256 tokens goes through attention in four causal blocks, which see 5/8 of all pairs."""
    model, tokens = TINY.replace(remat=remat), 256
    logprobs = make_logprobs(model, make_mesh({}, jax.devices()[:1]))
    integers = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    rows = dict.fromkeys(("tokens", "positions", "segment_ids", "targets", "mask"), integers)

    def loss(params, rows):
        return logprobs(params, type("Rows", (), rows), 1.0)[0].sum()

    traced = jax.make_jaxpr(jax.grad(loss))(nn.unbox(param_shapes(TINY)), rows)
    pairs = 5 / 8 * tokens**2
    expected = 3 * forward_flops(model, tokens, pairs) + recomputed_flops(model, tokens, pairs)
    norms = 2 * (2 * 128 + 2 * 32) + 128  # parameters too, but of no product
    assert product_flops(traced.jaxpr) == expected - 2 * tokens * norms * (4 if remat == "full" else 3)


def toy():
    return smaller_config(**{"rollout.max_response_tokens": 1000, "rollout.page_size": 64, "rollout.cache_gib": 0.001})


def test_decoding_by_hand():
    """8 groups x 4 samples on 4 copies: 8 responses each, of 500 tokens in the mean."""
    config = toy()
    config.rollout.prompts = 8
    mesh, assumed = plan_mesh({"data": 4}, 4), Assumptions(prompt=40)
    page = 2 * 2 * 64 * 2 * 32 * 4  # keys and values of 2 layers, 64 tokens, 2 heads of 32, float32
    pool = int(0.001 * 2**30) // page
    held = 40 / 4 + (1000**2 / 3) / 1000  # its share of the prompt, and E[l^2] / 2 E[l]
    together = int(pool * 64 / held)
    assert 1 < together < 8
    assert running(TINY, config, mesh, assumed) == together
    steps = 8 * 500 / together
    assert decode_steps(TINY, config, mesh, assumed) == pytest.approx(max(1000, steps))
    pairs = 8 * (40 * 500 + 1000**2 / 3 / 2)
    work = phase_work(TINY, config, mesh, assumed)["decode"]
    assert work.bytes == pytest.approx(max(1000, steps) * 4 * TINY.num_parameters + pairs * page / 64)
    assert work.flops == pytest.approx(forward_flops(TINY, 8 * 500, pairs))


def test_the_update_computes_for_padding_too():
    config, mesh = toy(), plan_mesh({"fsdp": 8}, 8)
    half, full = (phase_work(TINY, config, mesh, Assumptions(packing=share))["gradients"] for share in (0.5, 1.0))
    assert half.flops == pytest.approx(2 * full.flops)
    assert half.flops > 2 * half.useful == 2 * full.useful


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (Work(flops=2e3), (2.0, "compute")),
        (Work(flops=2e3, bytes=300.0), (3.0, "memory")),
        (Work(bytes=100.0, sent={"fsdp": 20.0, "tensor": 10.0}), (20 / 1 + 10 / 10, "network")),
        (Work(flops=1e3, bytes=100.0, host=40.0), (40 / 2, "host")),
        (Work(bytes=1.0, collectives=1e6), (0.01 + 1e6 * COLLECTIVE_S, "latency")),
    ],
)
def test_the_slowest_of_compute_memory_and_network_decides(work, expected):
    hardware = Hardware("gpu", {"float32": 1e3}, 1e9, 100.0, machine=4, link=10.0, network=1.0, host=2.0)
    time, bound = seconds(work, hardware, plan_mesh({"fsdp": 2, "tensor": 4}, 8), "float32")
    assert (time, bound) == (pytest.approx(expected[0]), expected[1])


def test_an_axis_within_a_machine_is_fast():
    mesh, h100 = plan_mesh({"data": 2, "fsdp": 2, "tensor": 4, "context": 2}, 32), HARDWARE["h100"]
    assert [axis_speed(h100, mesh, axis) for axis in mesh.axis_names] == [h100.network] * 2 + [h100.link] * 2
