"""The reference of config keys has all of them, as configs/base.py has them now."""

import sys
from pathlib import Path

import pytest

from configs import base
from polaris_jax import config as configs

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
from config_reference import keys, page  # noqa: E402

SOURCE = (ROOT / "configs" / "base.py").read_text(encoding="utf-8")


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == page(SOURCE), (
        "run python experiments/config_reference.py"
    )


def test_it_has_every_key_with_its_default_and_a_comment():
    found = {key: (eval(default), comment) for key, default, comment in keys(SOURCE)}
    known = dict(configs.flatten(base.get_config()))
    assert {key: default for key, (default, _) in found.items()} == known
    assert all(comment for _, comment in found.values())


def test_a_key_without_a_comment_is_refused():
    with pytest.raises(ValueError, match=r"a\.b has no comment"):
        page("def get_config():\n    c.a.b = 1\n")
    assert "| `a.b` | `1` | why |" in page("def get_config():\n    c.a.b = 1  # why\n")
