"""The phases of the recipe: in order, each once, resumed where they stopped."""

import json

import pytest

from polaris_jax import config as configs
from polaris_jax.errors import UserError
from polaris_jax.training import recipe


def metrics(config):
    """What training leaves: a row for each step of all stages."""
    steps = sum(stage.training.steps for _, stage in configs.stages(config))
    return {"metrics.jsonl": "".join(f'{{"step": {step}, "reward": 0.5}}\n' for step in range(1, steps + 1))}


def scores(config):
    """What an evaluation leaves."""
    return {"scores.json": json.dumps({"scores": {"b": {}}})}


@pytest.fixture
def phases(monkeypatch):
    """Stands in for the work of each phase; notes the phase, its model and its data. `stop` names one that raises."""
    calls, stop = [], set()

    def work(phase, writes=lambda config: {}):
        def run(config, output, **_):
            calls.append((phase, config.model.path, config.data.train))
            if phase in stop:
                stop.remove(phase)
                raise KeyboardInterrupt
            output.mkdir(exist_ok=True)
            for name, text in writes(config).items():
                (output / name).write_text(text)

        return run

    monkeypatch.setattr(recipe.sft, "run", work("sft"))
    monkeypatch.setattr(recipe.difficulty, "run", work("difficulty"))
    monkeypatch.setattr(recipe.loop, "run", work("train", metrics))
    monkeypatch.setattr(recipe.job, "run", work("evaluation", scores))
    monkeypatch.setattr(
        recipe.hf,
        "export_model",
        lambda source, target, **_: (calls.append(("export", source, target)), target.mkdir()),
    )
    return calls, stop


def test_each_phase_works_on_what_the_ones_before_made(phases, tiny_config, tmp_path):
    outcome = recipe.run(tiny_config(), tmp_path)
    assert phases[0] == [
        ("sft", "", "arithmetic"),
        ("difficulty", f"{tmp_path}/sft", "arithmetic"),
        ("train", f"{tmp_path}/sft", f"{tmp_path}/difficulty/kept"),
        ("evaluation", f"{tmp_path}/train", "arithmetic"),
        ("export", tmp_path / "train", tmp_path / "export"),
    ]
    assert outcome.history.frame().reward.tolist() == [0.5] * 4
    assert outcome.scores == {"b": {}}
    assert list(outcome.phases) == ["sft", "difficulty", "train", "evaluation", "export"]


def test_without_data_for_sft_it_begins_with_the_model_that_is_there(phases, tiny_config, tmp_path):
    recipe.run(tiny_config(**{"model.path": "some/model"}), tmp_path / "given")
    recipe.run(tiny_config(**{"sft.data": ""}), tmp_path / "random")
    assert [phase for phase, *_ in phases[0]] == ["difficulty", "train", "evaluation", "export"] * 2
    assert phases[0][0][1] == "some/model"
    assert phases[0][4][1] == ""


@pytest.mark.parametrize("phase", ["sft", "difficulty", "train", "evaluation"])
def test_a_complete_phase_is_not_done_again(phases, tiny_config, tmp_path, phase):
    calls, stop = phases
    stop.add(phase)
    with pytest.raises(KeyboardInterrupt):
        recipe.run(tiny_config(), tmp_path)
    assert calls[-1][0] == phase
    recipe.run(tiny_config(), tmp_path)
    recipe.run(tiny_config(), tmp_path)
    expected = ["sft", "difficulty", "train", "evaluation", "export"]
    expected.insert(expected.index(phase), phase)
    assert [name for name, *_ in calls] == expected


def test_an_export_that_was_complete_but_not_marked_is_kept(phases, tiny_config, tmp_path):
    recipe.run(tiny_config(), tmp_path)
    (tmp_path / "done" / "export.json").unlink()
    recipe.run(tiny_config(), tmp_path)
    assert [name for name, *_ in phases[0]].count("export") == 1


def test_another_config_is_refused_with_the_key(phases, tiny_config, tmp_path):
    stages = ({"name": "a", "steps": 2, "temperature": 1.2},)
    recipe.run(tiny_config(stages=stages), tmp_path)
    recipe.run(tiny_config(stages=stages), tmp_path)
    with pytest.raises(UserError, match=r"has another config: config.rollout.samples: 4 -> 6; give another"):
        recipe.run(tiny_config(stages=stages, **{"rollout.samples": 6}), tmp_path)
    with pytest.raises(UserError, match="the first stage needs a number"):
        recipe.run(tiny_config(stages=({"temperature": "search"},)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_more_steps_train_on_and_what_comes_after_is_done_anew(phases, tiny_config, tmp_path):
    recipe.run(tiny_config(), tmp_path)
    del phases[0][:]
    outcome = recipe.run(tiny_config(**{"training.steps": 6}), tmp_path)
    assert [phase for phase, *_ in phases[0]] == ["train", "evaluation", "export"]
    assert len(outcome.history.rows) == 6
    for name in ("evaluation", "export"):
        assert {path.name for path in tmp_path.glob(f"{name}*")} == {name, f"{name}_4"}
    del phases[0][:]
    recipe.run(tiny_config(**{"training.steps": 6}), tmp_path)
    assert not phases[0]
    with pytest.raises(UserError, match=r"config.training.steps: 6 -> 4"):
        recipe.run(tiny_config(), tmp_path)


@pytest.mark.parametrize("phase", ["train", "evaluation"])
def test_longer_stages_and_further_ones_survive_a_kill(phases, tiny_config, tmp_path, phase):
    short, second = {"name": "a", "steps": 2}, {"name": "b", "steps": 3}
    recipe.run(tiny_config(stages=(short,)), tmp_path)
    del phases[0][:]
    longer = tiny_config(stages=({"name": "a", "steps": 4}, second))
    phases[1].add(phase)
    with pytest.raises(KeyboardInterrupt):
        recipe.run(longer, tmp_path)
    assert len(recipe.run(longer, tmp_path).history.rows) == 7
    expected = ["train", "evaluation", "export"]
    expected.insert(expected.index(phase), phase)
    assert [name for name, *_ in phases[0]] == expected


def test_more_steps_of_sft_are_refused(phases, tiny_config, tmp_path):
    recipe.run(tiny_config(), tmp_path)
    with pytest.raises(UserError, match=r"config.sft.steps: 4 -> 8"):
        recipe.run(tiny_config(**{"sft.steps": 8}), tmp_path)


def test_the_export_has_the_context_that_was_evaluated(tiny_config, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(recipe.hf, "export_model", lambda *paths, **settings: given.update(settings))
    for factor, expected in ((1.0, 0.0), (1.5, 1.5)):
        yarn = {"evaluation.yarn_factor": factor, "rollout.yarn_original": 96}
        recipe.export(tiny_config(**yarn), tmp_path / "run", tmp_path / "export")
        assert (given["yarn_factor"], given["yarn_original"]) == (expected, 96)
        assert given["dtype"] == "float32"


def test_every_config_survives_being_kept(tmp_path):
    for name in ("polaris_4b", "tiny_stages"):
        config = configs.load(f"configs/{name}.py")
        (tmp_path / name).mkdir()
        recipe.write_config(config, tmp_path / name)
        recipe.check_config(config, tmp_path / name)
