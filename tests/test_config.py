import runpy
from pathlib import Path

import pytest

from configs import base
from polaris_jax import config as configs
from polaris_jax.errors import UserError

CONFIGS = Path(base.__file__).parent


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_config_is_valid_and_so_are_its_stages(path):
    config = configs.load(path)
    assert all(stage.training.steps > 0 for _, stage in configs.stages(config))


def test_a_misspelt_key_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"config.rollout.smaples: no such key; did you mean `rollout.samples`\?"):
        configs.load(CONFIGS / "tiny.py", {"rollout.smaples": 16})


def test_a_misspelt_key_in_a_config_file_or_a_stage_is_refused():
    config = base.get_config()
    config.rollout.smaples = 4
    with pytest.raises(UserError, match="smaples"):
        configs.check(config)
    with pytest.raises(UserError, match=r"no such key `temprature`; did you mean `temperature`\?"):
        configs.override(base.get_config(), {"stages": (dict(temprature=1.4),)})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rollout.samples", "eight", "expected int, found str 'eight'"),
        ("rollout.samples", 8.0, "expected int, found float 8.0"),
        ("seed", True, "expected int, found bool True"),
        ("algorithm.clip", 0.2, "expected tuple, found float 0.2"),
        ("rollout.samples", 1, "expected at least 2, found 1"),
        ("rollout.prompts", 0, "expected at least 1, found 0"),
        ("rollout.temperature", -0.5, "expected at least 0, found -0.5"),
    ],
)
def test_wrong_types_and_values_are_refused(key, value, words):
    with pytest.raises(UserError, match=f"config.{key}: {words}"):
        configs.override(base.get_config(), {key: value})


def test_an_int_is_taken_where_a_float_is_meant():
    assert configs.override(base.get_config(), {"rollout.temperature": 1}).rollout.temperature == 1


def test_a_missing_config_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.py: no such config file"):
        configs.load("nowhere.py")


def test_overriding_leaves_the_original_alone():
    config = base.get_config()
    assert configs.override(config, {"seed": 3}).seed == 3
    assert config.seed == 0


def test_stages_override_short_and_dotted_keys():
    config = configs.load(CONFIGS / "polaris_4b.py")
    resolved = configs.stages(config)
    assert [name for name, _ in resolved] == ["40k", "48k", "52k"]
    assert [stage.rollout.temperature for _, stage in resolved] == [1.4, 1.45, 1.5]
    assert [stage.rollout.max_response_tokens for _, stage in resolved] == [39_936, 48_128, 52_224]
    assert [stage.mesh.context for _, stage in resolved] == [1, 1, 4]
    assert sum(stage.training.steps for _, stage in resolved) == 700


def test_a_config_without_stages_is_one_stage():
    config = runpy.run_path(str(CONFIGS / "tiny.py"))["get_config"]()
    assert configs.stages(config) == [("train", config)]
