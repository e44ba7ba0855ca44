"""Compiled programs are kept in one bounded directory of the user's, unless environment or flag says otherwise."""

import subprocess
import sys

import jax
import pytest

from polaris_jax.runs import compilation

SETTINGS = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs")
SCRIPT = """
import jax
from polaris_jax import cli
cli.run(lambda _: print(jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size))
"""


@pytest.fixture
def unset():
    """JAX without a directory, as a user has it."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_directory_of_the_environment_is_left_as_it_is(tmp_path):
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    compilation.enable_compilation_cache(tmp_path / "other")
    assert {name: getattr(jax.config, name) for name in SETTINGS} == before
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("unset")
def test_the_directory_is_bounded_and_rid_of_what_a_kill_left(tmp_path):
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (tmp_path / name).write_bytes(b"12345678")
    compilation.enable_compilation_cache(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole-atime", "whole-cache"]
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    assert jax.config.jax_compilation_cache_max_size == compilation.MOST_BYTES


@pytest.mark.usefixtures("unset")
def test_a_directory_that_cannot_be_written_is_told_and_not_used(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    compilation.enable_compilation_cache(tmp_path / "file" / "below")
    assert jax.config.jax_compilation_cache_dir is None
    assert "compiled programs cannot be kept" in caplog.text


@pytest.mark.parametrize("given", ["flag", "nowhere", "user"])
def test_every_script_keeps_its_programs(given, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    if given == "user":
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    flags = {"flag": [f"--compilation_cache={tmp_path}/flag"], "nowhere": ["--compilation_cache="], "user": []}[given]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *flags], capture_output=True, text=True, check=True)
    expected = {
        "flag": f"{tmp_path}/flag {compilation.MOST_BYTES}",
        "nowhere": "None -1",
        "user": f"{tmp_path}/home/polaris_jax/compiled/{compilation._kind_of_processor()} {compilation.MOST_BYTES}",
    }
    assert done.stdout.strip() == expected[given]
