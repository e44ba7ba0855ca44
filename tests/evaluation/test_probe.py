"""A probe measures each temperature, finds the zones, and goes on where it stopped."""

import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from configs import tiny
from polaris_jax import config as configs
from polaris_jax.data.arithmetic import build_tokenizer, problems
from polaris_jax.data.problems import SUFFIX
from polaris_jax.errors import UserError
from polaris_jax.evaluation import job, probe
from polaris_jax.rl.temperature import Zones
from polaris_jax.types import Rollout

# Temperature: samples of four that are right, and how many different texts the four are.
BEHAVIOUR = {0.6: (4, 1), 1.0: (4, 2), 1.4: (4, 2), 1.5: (3, 4), 1.6: (1, 4)}
TOKENIZER = build_tokenizer(SUFFIX)
ANSWERS = {problem.id: problem.answers[0] for problem in problems("test", 3, SUFFIX)}


class Moody:
    """An engine that errs and varies as BEHAVIOUR says; `asked` lists the temperatures it was asked at."""

    asked: list = []  # noqa: RUF012

    def __init__(self, model, mesh, config, **_):
        pass

    def state(self):
        return {}

    def generate(self, params, prompts, samples, sampling, seed):
        Moody.asked.append(sampling.temperature)
        right, different = BEHAVIOUR[sampling.temperature]
        for prompt in prompts:
            for sample in range(samples):
                words = [str(sample % different)] * 4
                answer = ANSWERS[prompt.problem.id] if sample < right else "x"
                text = f"<think> {' '.join(words)}</think>\n\\boxed{{{answer}}}<|im_end|>"
                tokens = np.asarray(TOKENIZER(text, add_special_tokens=False)["input_ids"], np.int32)
                yield Rollout(prompt.problem.id, sample, prompt.tokens, tokens, np.zeros(len(tokens)), "stop")


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(job, "RolloutEngine", Moody)
    monkeypatch.setattr(probe, "load_model", lambda *arguments: (None, None))
    monkeypatch.setattr(Moody, "asked", [])
    return configs.override(tiny.get_config(), {"evaluation.max_problems": 3, "evaluation.samples": 4})


def test_a_probe_finds_the_zones_and_goes_on(config, tmp_path):
    some = probe.run(config, tmp_path, (1.4, 0.6))
    assert some.frame.temperature.to_list() == [0.6, 1.4]
    assert Moody.asked == [0.6, 1.4]
    found = probe.run(config, tmp_path, BEHAVIOUR)
    assert Moody.asked == [0.6, 1.4, 1.0, 1.5, 1.6]  # what was there is not sampled again
    assert found.frame["mean"].to_list() == [1, 1, 1, 0.75, 0.25]
    assert found.frame.diversity.is_monotonic_increasing
    assert found.zones == Zones((0.6, 1.4), (1.4, 1.5), (1.5, 1.6))
    written = json.loads((tmp_path / "probe.json").read_text())
    assert written["zones"] == {"robust": [0.6, 1.4], "exploration": [1.4, 1.5], "collapse": [1.5, 1.6]}
    assert [row["mean"] for row in written["temperatures"]] == [1, 1, 1, 0.75, 0.25]
    assert (tmp_path / "temperature.png").stat().st_size > 1000
    assert (tmp_path / "temperature_1.4" / "scores.json").exists()
    console = Console(width=80, record=True)
    console.print(probe.table(found))
    rows = [line.split() for line in console.export_text().splitlines() if "." in line]
    assert [row[-1] for row in rows] == ["robust", "robust", "exploration", "exploration", "collapse"]
    assert rows[3][:3] == ["1.5", "75.0", "75.0-75.0"]


def test_measures_are_those_of_a_hand_count(config, tmp_path):
    result = probe.run(config, tmp_path, [1.5])
    (row,) = result.frame.to_dict("records")
    # All four responses differ from one another, so no 4-gram is in two of them; none repeats its own.
    assert (row["mean"], row["diversity"], row["cut_off"]) == (0.75, 1.0, 0.0)
    assert pd.read_json(tmp_path / "temperature_1.5" / "responses.jsonl", lines=True).length.max() >= row["length"]


def test_no_temperature_is_refused(config, tmp_path):
    with pytest.raises(UserError, match="temperatures: empty"):
        probe.run(config, tmp_path / "out", [])
    with pytest.raises(UserError, match="expected numbers from 0 to 2147483647, found -1"):
        probe.run(config, tmp_path / "out", [-1.0])
    assert not (tmp_path / "out").exists()


def test_without_an_exploration_zone_all_is_robust_up_to_the_collapse():
    zones = Zones((0.6, 1.4), (1.4, 1.4), (1.4, 1.5))
    assert [probe.zone_of(t, zones) for t in (0.6, 1.4, 1.5)] == ["robust", "robust", "collapse"]


def test_the_picture_names_each_zone_with_its_range_or_that_it_is_not_there():
    frame = pd.DataFrame({"temperature": [1.2, 1.4, 1.6], "mean": [0.8, 0.6, 0.1], "diversity": [0.3, 0.5, 0.7]})
    figure = probe.picture(probe.Probe(frame.assign(low=0.0, high=1.0), Zones((1.2, 1.2), (1.2, 1.4), (1.4, 1.6))))
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert texts[-3:] == ["robust: not in this grid", "exploration: 1.2 to 1.4", "collapse: 1.4 to 1.6"]


def test_job_and_probe_evaluate_alike(config, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "RolloutEngine", Moody)
    monkeypatch.setattr(job, "load_model", lambda *arguments: (None, None))
    result = job.run(configs.override(config, {"evaluation.temperature": 1.5}), tmp_path / "job")
    probe.run(config, tmp_path / "probe", [1.5])
    for name in ("scores.json", "responses.jsonl"):
        assert (tmp_path / "probe" / "temperature_1.5" / name).read_text() == (tmp_path / "job" / name).read_text()
    assert probe.measures(result)["mean"] == 0.75


@pytest.mark.slow
def test_a_real_model_is_less_diverse_the_cooler_it_samples(tmp_path):
    changes = {"evaluation.max_problems": 2, "evaluation.samples": 4, "evaluation.max_response_tokens": 32}
    config = configs.override(tiny.get_config(), changes)
    frame, _ = probe.run(config, tmp_path, [0.0, 0.1, 1.5])
    assert frame.diversity[0] < frame.diversity[1] <= frame.diversity[2] <= 1  # greedy samples are all the same
    assert frame.cut_off[2] > 0
    pd.testing.assert_frame_equal(probe.run(config, tmp_path, [0.0, 0.1, 1.5]).frame, frame)
