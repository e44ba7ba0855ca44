"""The pages hold together: the navigation has all of them, examples run, commands parse, and links lead somewhere."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from polaris_jax import config as configs
from polaris_jax.training import loop
from tests.conftest import SMALLER

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def load_hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    spec.loader.exec_module(hooks := importlib.util.module_from_spec(spec))
    return hooks


def rendered(page):
    name = SimpleNamespace(file=SimpleNamespace(src_uri=page.name))
    return load_hooks().on_page_markdown(page.read_text(encoding="utf-8"), name)


def test_the_navigation_has_every_page_once():
    text = re.sub(r"!!python/name:\S+", "x", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    found = re.findall(r"(\w+\.md)", str(yaml.safe_load(text)["nav"]))
    assert sorted(found) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_pages_and_their_headings(page):
    for name, heading in re.findall(r"\]\((\w+\.md)(#[\w-]+)?\)", rendered(page)):
        assert (ROOT / "docs" / name).exists()
        if heading:
            titles = re.findall(r"^#+ (.*)$", rendered(ROOT / "docs" / name), re.MULTILINE)
            assert heading[1:] in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_a_link_to_nothing_is_refused(tmp_path):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="faq.md"))
    with pytest.raises(FileNotFoundError, match=r"links to ../nowhere.py, which is not there"):
        load_hooks().on_page_markdown("[x](../nowhere.py)", page)
    assert load_hooks().on_page_markdown("[`x`](../setup.py), [y](scaling.md#a)", page) == "`x`, [y](scaling.md#a)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_keys_and_configs_that_commands_name_are_there(page):
    known = dict(configs.flatten(configs.load(ROOT / "configs" / "base.py")))
    text = rendered(page)
    for key in re.findall(r"--config\.([a-z_]+\.[a-z_]+)", text):
        assert key in known
    for path in re.findall(r"(?:tests/)?(?:experiments|configs|launch)/[\w/]+\.py", text):
        assert (ROOT / path).exists()


def test_the_reward_of_ones_own_runs_as_it_stands(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_reward.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polaris_jax.runs.start.ARITHMETIC_PROBLEMS", 64)
    monkeypatch.setattr(loop, "verifier_pool", loop.verifier_pool)
    exec(compile(block, "own_reward.md", "exec"), {"QUICK": SMALLER | {"training.steps": 1}})
    assert (tmp_path / "runs" / "short_is_right" / "metrics.jsonl").exists()
