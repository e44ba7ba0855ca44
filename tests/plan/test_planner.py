"""Plans as a user asks for them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from polaris_jax import config as configs
from polaris_jax.errors import UserError
from polaris_jax.plan import hardware, planner
from polaris_jax.plan.hardware import load_price, parse_topology
from polaris_jax.plan.planner import model_shape, plan
from tests.conftest import CONFIGS, smaller_config

ROOT = Path(__file__).parents[2]
SMALL = hardware.Hardware("gpu", {"float32": 1e12}, 2**27 / hardware.USABLE, 1e11, 4, 1e10, 1e9)  # 128 MiB to fill


@pytest.fixture
def small(monkeypatch):
    """Devices on which the tiny model does not fit alone."""
    monkeypatch.setitem(hardware.HARDWARE, "small", SMALL)


@pytest.mark.parametrize(("mib", "problem"), [(127, ""), (129, "the compiler needs 0.13 GiB a device for apply, of")])
def test_what_the_compiler_needs_decides_whether_a_stage_fits(small, monkeypatch, mib, problem):
    monkeypatch.setattr(planner, "measure", lambda *_: {"decode": 2**20, "apply": mib * 2**20})
    config = smaller_config(**{"rollout.cache_gib": 0.01})
    found = plan(config, parse_topology("small:4"), compiled=True).stages[0]
    assert problem in found.problem
    assert bool(found.problem) == bool(problem)


def test_search_finds_the_fastest_mesh_that_fits(small):
    config = smaller_config(**{"updates.row_lengths": (8192,), "rollout.cache_gib": 0.01})
    found = plan(config, parse_topology("small:4"), search=True).stages[0]
    assert not found.problem
    assert all(sum(parts.values()) <= 2**27 for parts in found.memory.values())
    assert found.sequences >= 1
    assert found.changes["mesh.fsdp"] == found.mesh["fsdp"]
    assert not found.host  # what fits without the host's memory is as fast
    changed = configs.override(config, found.changes)
    again = plan(changed, parse_topology("small:4")).stages[0]
    assert (again.mesh, again.memory, again.step_s) == (found.mesh, found.memory, found.step_s)
    for mesh in ({"fsdp": 4}, {"data": 2, "fsdp": 2}, {"fsdp": 2, "tensor": 2}, {"fsdp": 2, "context": 2}):
        other = configs.override(config, found.changes | {f"mesh.{axis}": mesh.get(axis, 1) for axis in found.mesh})
        other = planner.plan_stage("train", other, parse_topology("small:4"), planner.Assumptions())
        assert other.problem or other.step_s >= found.step_s


def test_what_does_not_fit_is_refused_with_the_arithmetic(small):
    config = smaller_config(**{"updates.row_lengths": (65_536,), "rollout.cache_gib": 0.01})
    for search in (False, True):
        with pytest.raises(
            UserError, match=r"does not fit: gradients needs weights .* = .* GiB a device, of which 0\.1"
        ):
            plan(config, parse_topology("small:1"), search=search)


def test_the_longest_row_is_the_last_that_fits(small):
    found = plan(smaller_config(), parse_topology("small:4")).stages[0].longest_row
    for row, fits in ((found, True), (found + 512, False)):
        config = smaller_config(**{"updates.row_lengths": (row,)})
        memory = planner.phase_memory(model_shape(config), config, planner.plan_mesh(config.mesh, 4))
        assert (sum(memory["gradients"].values()) <= 2**27) == fits


@pytest.mark.parametrize(
    ("overrides", "topology", "words"),
    [
        ({"mesh.fsdp": 3}, "v5e:4", "fsdp=3 x tensor=1 x context=1 does not fit 4 devices"),
        ({"mesh.context": 4, "updates.row_lengths": (250,)}, "v5e:4", "250 does not divide by mesh.context=4"),
        ({"mesh.tensor": 8}, "v5e:8", "tensor=8 x context=1 spans machines of 4 devices"),
        ({"mesh.fsdp": 256}, "v5e:256", "does not split the parameters evenly"),
        ({"model.dtype": "float16"}, "v5e:4", "config.model.dtype: the device does not multiply float16"),
        ({"model.path": "someone/else"}, "v5e:4", "config.model: path 'someone/else' is no model's directory"),
    ],
)
def test_mistakes_are_named(overrides, topology, words):
    with pytest.raises(UserError, match=words):
        plan(smaller_config(**overrides), parse_topology(topology))


@pytest.mark.parametrize("text", ["h100", "h100:", "h100:0", "h100:4x", "tpu:4", "v5p:4x-1"])
def test_a_topology_that_is_none(text):
    with pytest.raises(UserError, match="--topology"):
        parse_topology(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[v5e", "prices.toml: not readable as toml"),
        ("v5e = 1.2", "prices.toml: v5e: expected the keys usd, source, date, found 1.2"),
        ("[v5e]\nusd = 1.2\nsource = 'x'", "v5e: expected the keys"),
        ("[v5e]\nusd = 'much'\nsource = 'x'\ndate = '2025'", "v5e.usd: expected a number, found 'much'"),
        ("[v5e]\nusd = -1\nsource = 'x'\ndate = '2025'", "v5e.usd: expected at least 0"),
        ("[v5e]\nusd = 1\nsource = 'x'\ndate = 2025", "v5e.date: expected a string, found 2025"),
    ],
)
def test_mistakes_in_a_price_file_are_one_line(text, words, tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words.replace(".", r"\.")) as raised:
        load_price("v5e", path)
    assert str(path) in str(raised.value)
    with pytest.raises(UserError, match=r"nowhere\.toml: not readable"):
        load_price("v5e", tmp_path / "nowhere.toml")


def test_every_price_is_of_known_hardware():
    priced = [kind for kind in hardware.HARDWARE if load_price(kind)]
    assert len(priced) == 7


def test_published_recipes_name_their_models():
    for name, expected in (("polaris_4b", 4.02e9), ("polaris_7b", 7.6e9), ("polaris_1p7b", 1.72e9)):
        assert model_shape(configs.load(CONFIGS / f"{name}.py")).num_parameters == pytest.approx(expected, rel=0.01)


def test_the_script_plans_for_devices_that_are_not_there(tmp_path):
    command = [sys.executable, "experiments/plan.py", "--config=configs/tiny_stages.py", "--topology=v5e:2x2"]
    command.append(f"--output={tmp_path}")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for words in ("gradients", "Measured: nothing", "Modelled:", "Assumed:", "30.7"):
        assert words in done.stdout
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "plan.json").read_text())
    hours = sum(stage["steps"] * stage["device_hours"] for stage in saved["stages"])
    assert f"{hours:,.0f} device-hours, {hours * load_price('v5e').usd:,.0f} US dollars" in done.stdout
