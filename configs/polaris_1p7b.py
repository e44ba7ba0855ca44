"""POLARIS-1.7B-Preview: two stages from Qwen3-1.7B.

Values from the released scripts, scripts/train/qwen3-1.7b/ of github.com/ChenxinAn-fdu/POLARIS. What is not published
is ours, and says so.
"""

from configs import base


def get_config():
    """The 4B's lengths, but hotter; two stages are released."""
    c = base.get_config()
    c.model.path = "Qwen/Qwen3-1.7B"
    c.data.train = "POLARIS-Project/Polaris-Dataset-53K"  # both stages: parquet/stage1/polaris-data-53K.parquet
    c.data.max_prompt_tokens = 1024

    c.rollout.prompts = 128  # data.train_batch_size
    c.rollout.samples = 8
    c.rollout.top_p = 1.0
    c.rollout.top_k = 0
    c.rollout.cache_gib = 40.0  # a device; ours: for devices of 80 GB

    c.algorithm.clip = (0.2, 0.28)
    c.updates.row_lengths = (16_384, 40_960, 49_152)  # the last two: tokens per device in the update of each stage
    c.updates.rows = 8  # ours: one for each device of a node

    c.optimizer.learning_rate = 1e-6  # constant, no warm-up
    c.optimizer.betas = (0.9, 0.999)  # this and the next two: defaults of the released trainer
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip_norm = 1.0

    # scripts/eval/eval_model_aime24.sh, which is named for the 4B model; for this one nothing else is published.
    c.evaluation.temperature = 1.4
    c.evaluation.top_k = 20
    c.evaluation.max_response_tokens = 90_000
    c.evaluation.yarn_factor = 1.5  # write-up: length extrapolation; not said for which models
    c.rollout.yarn_original = 65_536  # ours: 90,000 tokens need 65,536 x 1.5; the model's own 40,960 would give 61,440
    c.evaluation.benchmarks = ("aime24:32", "aime25:32", "amc23:8", "minerva:4", "olympiad:4")  # results' table

    # Lengths, temperatures and validation temperatures of stage1.sh and stage2.sh. Steps are not published: base's.
    c.stages = (
        dict(name="40k", temperature=1.5, max_response_tokens=39_936, **{"evaluation.temperature": 1.2}),
        dict(name="48k", temperature=1.55, max_response_tokens=48_128, **{"evaluation.temperature": 1.4}),
    )
    return c
