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
    c.data.max_prompt_tokens = 56

    c.rollout.prompts = 16
    c.rollout.samples = 8
    c.rollout.max_response_tokens = 72
    c.rollout.slots = 128
    c.rollout.page_size = 128  # all sequences have one page, so that fewer programs are compiled
    c.rollout.tokens_per_call = 16

    c.algorithm.rescue = False
    c.algorithm.substitute = False

    c.updates.row_lengths = (128,)
    c.updates.rows = 16

    c.optimizer.learning_rate = 5e-5
    c.optimizer.warmup_steps = 5
    c.optimizer.betas = (0.9, 0.95)

    c.training.steps = 40
    c.training.checkpoint_every = 20

    c.sft.data = "arithmetic"
    c.sft.steps = 1500
    c.sft.batch_size = 12
    c.sft.shuffle = False  # careful traces first, then ever more hasty ones
    c.sft.checkpoint_every = 750
    c.sft.learning_rate = 1e-3  # at 3e-3 the outcome hangs on rounding: docs/demo.md
    c.sft.warmup_steps = 50

    c.reward.workers = 1

    c.difficulty.problems = 512

    c.evaluation.benchmarks = ("arithmetic",)
    c.evaluation.samples = 4
    c.evaluation.max_problems = 128
    c.evaluation.max_response_tokens = 72
    return c
