"""POLARIS-7B-Preview: three stages from DeepSeek-R1-Distill-Qwen-7B.

Values from the released scripts, scripts/train/r1-distill-7b/ of github.com/ChenxinAn-fdu/POLARIS, and the write-up of
June 2025 where that is said. What is not published is ours, and says so.
"""

from configs import base


def get_config():
    """Starts at 16K tokens in all, which is safe for this model only, and cooler than the Qwen3 models."""
    c = base.get_config()
    c.model.path = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"  # write-up
    c.data.train = "POLARIS-Project/Polaris-Dataset-53K"  # all stages: parquet/stage1/polaris-data-53K.parquet
    c.data.max_prompt_tokens = 1024

    c.rollout.prompts = 128  # data.train_batch_size
    c.rollout.samples = 8
    c.rollout.top_p = 1.0
    c.rollout.top_k = 0
    c.rollout.cache_gib = 30.0  # a device; ours: for devices of 80 GB

    c.algorithm.clip = (0.2, 0.28)
    c.updates.row_lengths = (16_384, 24_576, 32_768)  # tokens per device in the update of each stage
    c.updates.rows = 8  # ours: one for each device of a node

    c.optimizer.learning_rate = 1e-6  # constant, no warm-up
    c.optimizer.betas = (0.9, 0.999)  # this and the next two: defaults of the released trainer
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip_norm = 1.0

    # The final evaluation's sampling is not published; ours: that of the last stage's validation.
    c.evaluation.temperature = 0.8
    c.evaluation.max_response_tokens = 31_744
    c.evaluation.benchmarks = ("aime24:32", "aime25:32", "amc23:8", "minerva:4", "olympiad:4")  # results' table

    # Lengths, temperatures and validation temperatures of stage1.sh to stage3.sh. Steps are not published: base's.
    c.stages = (
        dict(name="16k", temperature=0.7, max_response_tokens=15_360, **{"evaluation.temperature": 0.6}),
        dict(name="24k", temperature=1.0, max_response_tokens=23_552, **{"evaluation.temperature": 0.8}),
        dict(name="32k", temperature=1.1, max_response_tokens=31_744, **{"evaluation.temperature": 0.8}),
    )
    return c
