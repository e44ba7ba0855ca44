"""The tests on every Python and JAX that a user gets: make test-versions

    python experiments/test_versions.py --only=3.12-newest --marked=accelerator

Each row has an environment of its own in .venv-versions/. Pythons are looked for in PYTHON (paths, separated by
colons), on the PATH, and among pyenv's. Prints a table, and why tests were skipped. Returns 1 where a test failed, or a
Python was not found.
"""

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import which
from xml.etree import ElementTree

from absl import app, flags
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
LOWEST_JAX = re.search(r'"jax>=([\d.]+)', (ROOT / "setup.py").read_text(encoding="utf-8"))[1]

# Name: Python, what pip is told beside the project, and which tests.
ROWS = {
    "3.11-lowest": ("3.11", [f"jax=={LOWEST_JAX}"], "not slow"),
    "3.12-newest": ("3.12", [], "not slow"),
    "3.12-jax-0.11.2": ("3.12", ["jax==0.11.2", "flax==0.12.10"], "accelerator and not slow"),
    "3.13-newest": ("3.13", [], "accelerator and not slow"),
}

ONLY = flags.DEFINE_list("only", [], f"Rows: {', '.join(ROWS)}; empty: all.")
MARKED = flags.DEFINE_string("marked", "", "Only tests with this marker, in every row.")
SKIP_MISSING = flags.DEFINE_bool("skip_missing", False, "A Python that is not found is no failure.")
PROCESSES = flags.DEFINE_integer("processes", 2, "Of pytest.")


@dataclass
class Row:
    """What one row of the table says.

    tests: pytest's expression of markers. skipped: how often for each reason. note: what kept the tests from their end.
    """

    name: str
    tests: str
    versions: tuple[str, ...] = ("", "", "")
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    note: str = ""


def main(_: list[str]) -> int:
    """Runs the rows and prints the table."""
    console, rows = Console(width=max(Console().width, 150)), []  # the table is wide
    for name in ONLY.value or ROWS:
        number, requirements, tests = ROWS[name]
        tests += f" and {MARKED.value}" * bool(MARKED.value)
        rows.append(test(Row(name, tests), number, requirements, PROCESSES.value))
        console.print(f"{name}: {rows[-1].passed} passed, {len(rows[-1].failed)} failed {rows[-1].note}", markup=False)
    console.print(table(rows))
    for row in rows:
        lines = [f"  failed: {test}" for test in row.failed]
        lines += [f"  skipped {count}: {reason}" for reason, count in row.skipped.most_common()]
        console.print("\n".join([row.name, *lines]) if lines else "", markup=False, highlight=False, soft_wrap=True)
    missing = [row for row in rows if row.note and not (SKIP_MISSING.value and row.note.startswith("no Python"))]
    return int(bool(missing) or any(row.failed for row in rows))


def test(row: Row, number: str, requirements: list[str], processes: int) -> Row:
    """Makes the row's environment where it is not there yet, and runs its tests in it with so many processes."""
    python = next(pythons(number), None)
    if python is None:
        return replace(row, note=f"no Python {number} found: name one in PYTHON")
    venv = ROOT / ".venv-versions" / row.name
    if problem := install(python, venv, requirements):
        return replace(row, note=problem)
    report = venv / "report.xml"
    report.unlink(missing_ok=True)
    command = [venv / "bin" / "python", "-m", "pytest", "-m", row.tests, f"--junitxml={report}"]
    command += ["-n", str(processes), "--dist", "loadfile"] * (processes > 1)
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    row = replace(row, versions=versions(venv), seconds=time.monotonic() - began)
    row = counted(row, report) if report.exists() else row
    return replace(row, note=f"pytest ended with code {code}") if code and not row.failed else row


def pythons(number: str) -> Iterator[str]:
    """The interpreters of that version, such as "3.12", that start."""
    found = [*os.environ.get("PYTHON", "").split(os.pathsep), which(f"python{number}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found += sorted(map(str, pyenv.glob(f"{number}.*/bin/python")), reverse=True)
    for path in filter(None, found):
        program = "import sys; print('%d.%d' % sys.version_info[:2])"
        try:  # pyenv's shims lie on the PATH also of versions that are not chosen, and fail
            said = subprocess.run([path, "-c", program], capture_output=True, text=True)
        except OSError:
            continue
        if said.returncode == 0 and said.stdout.strip() == number:
            yield path


def install(python: str, venv: Path, requirements: list[str]) -> str:
    """The environment, torch in it where there is a wheel for this Python. Returns what went wrong, or nothing."""
    stamp, pip = venv / "installed", [venv / "bin" / "python", "-m", "pip", "install", "--quiet"]
    if stamp.exists() and stamp.stat().st_mtime > (ROOT / "setup.py").stat().st_mtime:
        return ""
    steps = [
        [python, "-m", "venv", "--clear", venv],
        [*pip, "--upgrade", "pip"],
        [*pip, "-e", ".[test,notebooks]", *requirements],
    ]
    steps += [[venv / "bin" / "python", "experiments/install_compilers.py"]]
    for step in steps:
        done = subprocess.run(step, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return " ".join(done.stderr.strip().splitlines()[-1:]) or f"{step[0]} ended with code {done.returncode}"
    torch = subprocess.run(
        [*pip, "-e", ".[test,torch,peft]", *requirements], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    if torch.returncode:
        print(f"{venv.name}: without torch: {' '.join(torch.stderr.strip().splitlines()[-1:])}", flush=True)
    stamp.touch()
    return ""


def versions(venv: Path) -> tuple[str, ...]:
    """Of Python, jax and flax in an environment."""
    program = "import platform as p; from importlib.metadata import version as v; "
    program += "print(p.python_version(), v('jax'), v('flax'))"
    found = subprocess.run([venv / "bin" / "python", "-c", program], capture_output=True, text=True, check=True)
    return tuple(found.stdout.split())


def counted(row: Row, report: Path) -> Row:
    """The row with what pytest's JUnit file tells."""
    passed, failed, skipped = 0, [], Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        if (reason := case.find("skipped")) is not None:
            skipped[" ".join(reason.get("message", "").split())[:160]] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        else:
            passed += 1
    return replace(row, passed=passed, failed=failed, skipped=skipped)


def table(rows: list[Row]) -> Table:
    """One line a row."""
    found = Table("", "python", "jax", "flax", "tests", "passed", "failed", "skipped", "seconds", "note")
    for row in rows:
        counts = (row.passed, len(row.failed), row.skipped.total())
        found.add_row(row.name, *row.versions, row.tests, *map(str, counts), f"{row.seconds:.0f}", row.note)
    return found


if __name__ == "__main__":
    app.run(main)
