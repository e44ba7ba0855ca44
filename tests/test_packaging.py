"""What installation needs and what a wheel holds."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("polaris_jax", "configs")
OPTIONAL = ("wandb", "mlflow", "reasoning-gym", "torch")  # extras, imported only where they are asked for


def setup_arguments():
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (call,) = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "setup"]
    return {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in ("install_requires", "extras_require")}


def distribution(requirement):
    """The normalised name in a requirement."""
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")


def imported():
    """The packages of others that ours import: those at the top of a module, and those only within functions."""
    top, inside = set(), set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                names += [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
            (top if node in tree.body else inside).update(name.split(".")[0] for name in names)
    known = {*sys.stdlib_module_names, *PACKAGES}
    return top - known, inside - top - known


def test_what_is_imported_is_required_and_what_is_required_is_imported():
    arguments, distributions = setup_arguments(), importlib.metadata.packages_distributions()

    def provided(names):
        """For each import, the distributions that may provide it."""
        return {name: {distribution(found) for found in distributions.get(name, [name])} for name in names}

    top, inside = map(provided, imported())
    required = {distribution(requirement) for requirement in arguments["install_requires"]}
    extras = {distribution(r) for name in OPTIONAL for r in arguments["extras_require"][name]}
    assert {name for name, found in top.items() if not found & required} == set()
    assert {name for name, found in inside.items() if not found & (required | extras)} == set()
    used = set().union(*top.values(), *inside.values())
    assert {name for name in required | extras if name not in used} == set()


def run_module(*arguments, python=sys.executable, cwd=ROOT):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" or cwd == ROOT}
    command = [str(python), "-m", "polaris_jax", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def test_the_module_lists_every_script_with_what_it_does():
    done = run_module()
    assert done.returncode == 0
    listed = dict(re.findall(r"^  (\w+) +(\S.*\.)$", done.stdout, re.MULTILINE))
    assert set(listed) == {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert listed["train"] == "GRPO training."
    assert str(ROOT / "configs") in done.stdout


def test_the_module_runs_a_command_and_tells_the_nearest_of_an_unknown_one():
    assert "python experiments/train.py" in run_module("train", "--help").stdout
    done = run_module("evalute")
    assert (done.returncode, done.stderr) == (2, "error: evalute: no such command; did you mean evaluate?\n")


SMALL = {
    "rollout.prompts": 2,
    "rollout.samples": 2,
    "rollout.max_response_tokens": 16,
    "training.steps": 1,
    "updates.rows": 4,
}


@pytest.mark.slow
def test_a_wheel_is_built_installed_and_trains(tmp_path):
    source = tmp_path / "source"
    for name in (*PACKAGES, "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(source)]  # of the sdist, a wheel
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(wheel)], check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    listed = run_module(python=python, cwd=elsewhere)
    assert "  train " in listed.stdout
    installed = Path(listed.stdout.rpartition("--config: ")[2].strip())
    assert installed.is_relative_to(tmp_path / "venv")
    assert {path.name for path in (ROOT / "configs").glob("*.py")} <= {path.name for path in installed.glob("*.py")}
    count = (
        "from polaris_jax.data.problems import BENCHMARKS, benchmark; print([len(benchmark(b)) for b in BENCHMARKS])"
    )
    loaded = subprocess.run([str(python), "-c", count], capture_output=True, text=True, check=True, cwd=elsewhere)
    assert min(ast.literal_eval(loaded.stdout)) >= 30
    flags = [f"--config.{key}={value}" for key, value in SMALL.items()]
    trained = run_module(
        "train", f"--config={installed}/tiny.py", "--workdir=run", *flags, python=python, cwd=elsewhere
    )
    assert trained.returncode == 0, trained.stderr
    assert (elsewhere / "run" / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    shown = run_module("report", "--workdir=run", "--output=again.html", python=python, cwd=elsewhere)
    assert shown.stdout == "report: again.html\n", shown.stderr
