"""Every part of the recipe on the tiny model: `python experiments/polaris.py --config=configs/tiny_stages.py`."""

from configs import tiny


def get_config():
    """The tiny config on longer chains, with stages that grow longer, a searched temperature, rescue, substitution."""
    c = tiny.get_config()
    c.model.tokenizer = "long_arithmetic"
    c.data.train = "long_arithmetic"
    c.data.max_prompt_tokens = 72
    c.sft.data = "long_arithmetic"
    c.sft.steps = 1800
    c.evaluation.benchmarks = ("long_arithmetic",)

    c.rollout.max_response_tokens = 88  # ten operations, one a line, take 83
    c.evaluation.max_response_tokens = 88
    c.rollout.page_size = 256
    c.updates.row_lengths = (160,)
    c.updates.rows = 12

    c.algorithm.rescue = True
    c.algorithm.substitute = True
    c.difficulty.problems = 128  # few, so that each is visited several times: rescue needs an earlier visit
    c.search.problems = 32
    c.search.highest = 1.1  # hotter, a tiny model restores its diversity with mistakes: 1.55, at half the accuracy
    c.stages = (
        dict(name="short", steps=10, temperature=1.0, max_response_tokens=56),
        dict(name="long", steps=14, temperature="search", max_response_tokens=88),
    )
    return c
