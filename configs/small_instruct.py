"""GRPO of an instruct model of 0.5B to 1.7B on one GPU or a CPU; docs/own_model.md goes through it."""

from configs import base


def get_config():
    """Short responses, few slots, and as little memory as goes. Set `model.path` and `data.train`."""
    c = base.get_config()
    c.model.dtype = "bfloat16"  # float32 on CPUs without native bfloat16, which emulate it
    c.model.remat = "full"  # memory before speed

    c.data.max_prompt_tokens = 512
    c.data.drop_above = 1.0  # a small set is kept whole

    c.rollout.prompts = 16
    c.rollout.samples = 8
    c.rollout.max_response_tokens = 512  # an instruct model answers in a few hundred tokens
    c.rollout.slots = 32
    c.rollout.tokens_per_call = 16

    c.algorithm.rescue = False  # of use where responses take minutes, not seconds
    c.algorithm.substitute = False

    c.updates.row_lengths = (256, 512, 1024)  # the longest holds a prompt and its response
    c.updates.rows = 1

    c.optimizer.learning_rate = 1e-6
    c.optimizer.warmup_steps = 5
    c.optimizer.moments = "int8"  # a quarter of AdamW's float32

    c.reward.require_think = "no"  # an instruct model answers without thoughts

    c.training.steps = 100
    c.training.checkpoint_every = 20
    c.training.evaluate_every = 20

    c.evaluation.benchmarks = ("amc23",)
    c.evaluation.samples = 4
    c.evaluation.max_response_tokens = 512
    return c
