"""POLARIS-4B-Preview: three stages from Qwen3-4B.

Values from the released scripts, scripts/train/qwen3-4b/ of github.com/ChenxinAn-fdu/POLARIS, and the write-up of June
2025. What is not published is ours, and says so.
"""

from configs import base


def get_config():
    """About 700 steps in all, of 128 prompts x 8 rollouts, with longer responses and more heat from stage to stage."""
    c = base.get_config()
    c.model.path = "Qwen/Qwen3-4B"
    c.data.train = "POLARIS-Project/Polaris-Dataset-53K"  # theirs: the 30K left of it after a second pass
    c.data.max_prompt_tokens = 1024

    c.rollout.prompts = 128  # data.train_batch_size
    c.rollout.samples = 8
    c.rollout.cache_gib = 30.0  # a device; ours: beside 4B weights, gradients and moments on devices of 80 GB
    c.rollout.top_p = 1.0
    c.rollout.top_k = 0

    c.algorithm.clip = (0.2, 0.28)
    c.updates.row_lengths = (16_384, 32_768, 53_248)  # the last: tokens per device in the update of the last stage
    c.updates.rows = 8  # ours: one for each device of a node

    c.optimizer.learning_rate = 1e-6  # constant, no warm-up
    c.optimizer.betas = (0.9, 0.999)  # this and the next two: defaults of the released trainer
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip_norm = 1.0

    # scripts/eval/eval_model_aime24.sh; the validation of stages 2 and 3 is at 1.4, too.
    c.evaluation.temperature = 1.4
    c.evaluation.top_k = 20
    c.evaluation.max_response_tokens = 90_000
    c.evaluation.yarn_factor = 1.5  # write-up: length extrapolation, at inference alone
    c.rollout.yarn_original = 65_536  # ours: 90,000 tokens need 65,536 x 1.5; the model's own 40,960 would give 61,440
    c.evaluation.benchmarks = ("aime24:32", "aime25:32", "amc23:8", "minerva:4", "olympiad:4")

    # Only the sum of the steps is published; equal thirds are our choice.
    c.stages = (
        dict(name="40k", steps=234, temperature=1.4, max_response_tokens=39_936, **{"evaluation.temperature": 1.2}),
        dict(name="48k", steps=233, temperature=1.45, max_response_tokens=48_128),
        dict(name="52k", steps=233, temperature=1.5, max_response_tokens=52_224, **{"mesh.context": 4}),
    )
    return c
