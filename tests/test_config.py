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
        ("rollout.temperature", -0.5, "expected more than 0, found -0.5"),
        ("algorithm.min_mixed", 1.5, "expected a share below 1, found 1.5"),
        ("algorithm.covariance_clip", 1.0, "expected a share below 1, found 1.0"),
        ("algorithm.covariance_bounds", (5.0, 1.0), r"expected lower and upper, found \(5.0, 1.0\)"),
        ("training.profile_steps", (3, 2), r"expected first and last step, or none, found \(3, 2\)"),
        ("training.profile_steps", (4,), r"expected first and last step, or none, found \(4,\)"),
        (
            "model.lora_targets",
            ("q_proj", "lm_head"),
            r"expected some of q_proj, .*, each once, found \('q_proj', 'lm_",
        ),
        ("model.lora_targets", (), "expected some of q_proj"),
        ("model.lora_base", "int4", "expected one of '', int8, fp8, found 'int4'"),
        ("difficulty.keep", (0.0, 0.9), r"expected pairs \(lowest, highest accuracy\), found \(0.0, 0.9\)"),
        ("difficulty.keep", ((0.9, 0.1),), r"expected pairs \(lowest, highest accuracy\), found \(\(0.9, 0.1\),\)"),
    ],
)
def test_wrong_types_and_values_are_refused(key, value, words):
    with pytest.raises(UserError, match=f"config.{key}: {words}"):
        configs.override(base.get_config(), {key: value})


def test_muon_has_no_kernels_to_train_where_adapters_are_trained():
    with pytest.raises(UserError, match=r"config.optimizer.name: muon is for whole kernels"):
        configs.override(base.get_config(), {"model.lora_rank": 8, "optimizer.name": "muon"})


def test_importance_weights_and_recorded_ratios_exclude_each_other():
    with pytest.raises(UserError, match=r"config.algorithm.importance_cap: weights lead from the sampler"):
        configs.override(base.get_config(), {"algorithm.importance_cap": 2.0, "algorithm.old_logprobs": "recorded"})


def test_tokens_are_not_clipped_one_by_one_where_the_ratio_is_the_sequences():
    with pytest.raises(UserError, match=r"config.algorithm.covariance_clip: detaches single tokens"):
        configs.override(base.get_config(), {"algorithm.covariance_clip": 2e-4, "algorithm.loss": "gspo"})


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


# As released: rollout temperature, response tokens, validation temperature, sequence parallelism of each stage.
RELEASED = {
    "polaris_1p7b": [(1.5, 39_936, 1.2, 1), (1.55, 48_128, 1.4, 1)],
    "polaris_4b": [(1.4, 39_936, 1.2, 1), (1.45, 48_128, 1.4, 1), (1.5, 52_224, 1.4, 4)],
    "polaris_7b": [(0.7, 15_360, 0.6, 1), (1.0, 23_552, 0.8, 1), (1.1, 31_744, 0.8, 1)],
}


def test_qwen3_is_evaluated_as_released():
    for name in ("polaris_1p7b", "polaris_4b"):
        c = configs.load(CONFIGS / f"{name}.py").evaluation
        assert (c.temperature, c.top_k, c.top_p, c.max_response_tokens, c.yarn_factor) == (1.4, 20, 1.0, 90_000, 1.5)
        config = configs.load(CONFIGS / f"{name}.py")
        assert config.rollout.yarn_original * c.yarn_factor >= config.data.max_prompt_tokens + 90_000


def test_a_stage_but_the_first_may_search_its_temperature():
    first, search = {"temperature": 1.2}, {"temperature": "search", "steps": 3}
    stages = [stage for _, stage in configs.stages(configs.override(base.get_config(), {"stages": (first, search)}))]
    assert [stage.search.on for stage in stages] == [False, True]
    assert [stage.training.steps for stage in stages] == [100, 3]
    for wrong in ({"stages": (search,)}, {"search.on": True}):
        with pytest.raises(UserError, match="the first stage needs a number"):
            configs.stages(configs.override(base.get_config(), wrong))


@pytest.mark.parametrize("name", RELEASED)
def test_the_recipes_configs_hold_the_released_values(name):
    stages = [stage for _, stage in configs.stages(configs.load(CONFIGS / f"{name}.py"))]
    assert [
        (s.rollout.temperature, s.rollout.max_response_tokens, s.evaluation.temperature, s.mesh.context) for s in stages
    ] == RELEASED[name]
    for s in stages:
        assert (s.rollout.prompts, s.rollout.samples, s.rollout.top_p, s.rollout.top_k) == (128, 8, 1.0, 0)
        assert (s.algorithm.loss, s.algorithm.advantage, s.algorithm.aggregation) == ("grpo", "group", "token")
        assert (s.algorithm.clip, s.algorithm.kl, s.updates.minibatches) == ((0.2, 0.28), 0, 1)
        assert (s.optimizer.learning_rate, s.optimizer.schedule, s.optimizer.warmup_steps) == (1e-6, "constant", 0)
        assert (s.optimizer.betas, s.optimizer.weight_decay, s.optimizer.clip_norm) == ((0.9, 0.999), 0.01, 1.0)
        assert s.data.max_prompt_tokens == 1024
        longest = s.data.max_prompt_tokens + s.rollout.max_response_tokens
        assert max(s.updates.row_lengths) >= longest - 1


@pytest.mark.parametrize(
    "key",
    ["seed", "model.path", "model.dtype", "data.suffix", "optimizer.moments", "reward.timeout_s", "training.keep",
     "sft.steps", "difficulty.samples"],
)  # fmt: skip
def test_a_stage_cannot_change_what_is_the_whole_runs(key):
    value = dict(configs.flatten(base.get_config()))[key]
    with pytest.raises(UserError, match=f"config.stages: `{key}` is the whole run's, a stage cannot change it"):
        configs.override(base.get_config(), {"stages": ({key: value},)})


def test_a_config_without_stages_is_one_stage():
    config = runpy.run_path(str(CONFIGS / "tiny.py"))["get_config"]()
    assert configs.stages(config) == [("train", config)]
