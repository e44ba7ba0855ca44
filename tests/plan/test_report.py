"""The picture of a plan says what the plan says."""

import pytest

from polaris_jax.plan import hardware, report
from polaris_jax.plan.memory import PHASES
from polaris_jax.plan.planner import plan
from tests.conftest import smaller_config

STAGES = ({"name": "a", "steps": 1}, {"name": "b", "steps": 1, "max_response_tokens": 16})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((1.1e-5, "11 us"), (2.63e-3, "2.6 ms"), (0.39, "390 ms"), (1.5, "1.5 s"), (48, "48 s"), (1320, "22 min")),
        *((4 * 3600 + 120, "4 h 2 min"), (3 * 86400, "3.0 days")),
    ],
)
def test_durations_in_human_units(seconds, text):
    assert report.duration(seconds) == text


def test_what_lies_on_the_host_is_told_with_its_seconds():
    away = {"optimizer.offload": True, "model.remat": "offload"}
    planned, plain = (plan(smaller_config(**keys), hardware.parse_topology("h100:1")) for keys in (away, {}))
    (stage,), text = planned.stages, report.markdown(planned)
    moments, activations = (stage.host[name] / 2**30 for name in ("moments", "activations"))
    seconds = (2 * stage.host["moments"] + stage.work["gradients"].host) / 64e9
    assert f"| on the host, GiB a device | moments {moments:.1f}, activations {activations:.1f} |" in text
    assert f"| to the host and back, 64 GB/s one way | {seconds:,.1f} s |" in text
    assert "host" not in report.markdown(plain)


def test_bars_are_the_memory_and_times_are_at_the_speed_of_the_title():
    planned = plan(smaller_config(stages=STAGES), hardware.parse_topology("v5e:1"))
    figure = report.picture(planned)
    assert f"{planned.assumed.achieved:.0%} of the roofline" in figure.get_suptitle()
    for panel, stage in zip(figure.axes, planned.stages, strict=True):
        assert panel.get_title() == f"{stage.name}: {report.duration(stage.step_s)} a step"
        tops = [max(bar.get_y() + bar.get_height() for bar in group) for group in zip(*panel.containers, strict=True)]
        assert tops == pytest.approx([sum(stage.memory[phase].values()) / 2**20 for phase in PHASES])
        times = [label.get_text().splitlines()[1] for label in panel.get_xticklabels()]
        assert times == [report.duration(stage.limit_s[p][0] / planned.assumed.achieved) for p in PHASES]
