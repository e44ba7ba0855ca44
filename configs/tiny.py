"""A tiny model on chained arithmetic, for two cores: the whole way in minutes. `make demo` runs it."""

from configs import base


def get_config():
    """About 0.4M parameters from random weights: SFT to a middling model, then GRPO."""
    c = base.get_config()
    c.model.preset = "tiny"
    c.model.tokenizer = "arithmetic"
    c.model.dtype = "float32"
    c.model.remat = "none"

    c.data.train = "arithmetic"
    c.data.max_prompt_tokens = 64

    c.rollout.prompts = 16
    c.rollout.samples = 8
    c.rollout.max_response_tokens = 96
    c.rollout.slots = 128
    c.rollout.page_size = 64
    c.rollout.tokens_per_call = 16

    c.algorithm.rescue = False
    c.algorithm.substitute = False

    c.updates.row_lengths = (256,)
    c.updates.rows = 4

    c.optimizer.learning_rate = 1.5e-4
    c.optimizer.betas = (0.9, 0.98)

    c.training.steps = 45
    c.training.checkpoint_every = 15

    c.sft.data = "arithmetic"
    c.sft.steps = 2150
    c.sft.batch_size = 12
    c.sft.shuffle = False  # careful traces first, mixed styles last
    c.sft.checkpoint_every = 1075
    c.sft.learning_rate = 3e-3
    c.sft.warmup_steps = 20

    c.reward.workers = 1

    c.difficulty.problems = 512

    c.evaluation.benchmarks = ("arithmetic",)
    c.evaluation.samples = 4
    c.evaluation.max_problems = 128
    c.evaluation.max_response_tokens = 96
    return c
