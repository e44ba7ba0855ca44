"""The script that runs the tests on other Pythons and JAXs: which it finds, and what it counts."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.conftest import CONFIGS

HERE = ".".join(map(str, sys.version_info[:2]))


def load(name):
    """The module of a script."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS.parent / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script, install_compilers = load("test_versions"), load("install_compilers")

TESTS = """
import pytest

def test_right():
    pass

def test_wrong():
    assert 0

@pytest.fixture
def broken():
    raise ValueError

def test_broken(broken):
    pass

@pytest.mark.parametrize("n", [1, 2])
def test_torch(n):
    pytest.importorskip("no_such_torch")

@pytest.mark.skip(reason="no compilers")
def test_compilers():
    pass
"""


def test_every_outcome_is_counted_with_its_reason(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", tmp_path]
    subprocess.run(command, capture_output=True, cwd=tmp_path)
    row = script.counted(script.Row("3.12-newest", "not slow"), report)
    assert row.passed == 1
    assert row.failed == ["test_some::test_wrong", "test_some::test_broken"]
    assert sorted(row.skipped.values()) == [1, 2]
    assert {reason: count for reason, count in row.skipped.items() if "no_such_torch" in reason}.popitem()[1] == 2
    assert script.table([row]).row_count == 1


@pytest.mark.skipif(os.name != "posix", reason="makes a shell script")
def test_only_a_python_that_says_so_is_taken(tmp_path, monkeypatch):
    liar, broken = tmp_path / "liar", tmp_path / "broken"
    liar.write_text("#!/bin/sh\necho 2.7\n")
    broken.write_text("#!/bin/sh\nexit 127\n")
    liar.chmod(0o755)
    broken.chmod(0o755)
    named = [str(liar), str(broken), str(tmp_path / "none"), sys.executable]
    monkeypatch.setenv("PYTHON", os.pathsep.join(named))
    assert next(script.pythons(HERE)) == sys.executable
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert list(script.pythons("3.99")) == []


def test_a_python_that_is_not_there_is_told():
    row = script.test(script.Row("future", "not slow"), "3.99", [], 1)
    assert row.note == "no Python 3.99 found: name one in PYTHON"


def test_the_compilers_are_those_of_the_installed_jax():
    both = ['libtpu==0.0.50.*; extra == "tpu"', 'jax-cuda12-plugin[with-cuda]<=0.12; extra == "cuda12"',
            'jax-cuda13-plugin[with-cuda]<=0.12; extra == "cuda13"']  # fmt: skip
    assert install_compilers.wanted(both, "0.12.0") == [
        "libtpu==0.0.50.*", "jax-cuda12-plugin==0.12.0", "jax-cuda12-pjrt==0.12.0",
    ]  # fmt: skip
    assert install_compilers.wanted(both[::2], "0.13")[1:] == ["jax-cuda13-plugin==0.13", "jax-cuda13-pjrt==0.13"]
