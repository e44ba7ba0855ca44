"""Every part of the recipe on the tiny model: `python experiments/polaris.py --config=configs/tiny_stages.py`."""

from configs import tiny


def get_config():
    """The tiny config, with stages that grow longer, a searched temperature, rescue and substitution."""
    c = tiny.get_config()
    c.algorithm.rescue = True
    c.algorithm.substitute = True
    c.search.problems = 32
    c.search.highest = 1.1  # hotter, a tiny model restores its diversity with mistakes: 1.55, at half the accuracy
    c.stages = (
        dict(name="short", steps=20, temperature=1.0, max_response_tokens=56),
        dict(name="long", steps=25, temperature="search", max_response_tokens=72),
    )
    return c
