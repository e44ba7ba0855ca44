"""Counts what keeps the code readable: python experiments/house.py [--root=DIR]

Arrows that run back up between the modules, files from the config to the gradient, the widest functions, lines, words
of one platform on the main path, and classes that share a name. DIR: a checkout; this one by default.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags
from rich.console import Console
from rich.table import Table

ROOT = flags.DEFINE_string("root", str(Path(__file__).resolve().parents[1]), "The checkout to count.")

# The modules from the ground up; imports run downwards, or stay within a line.
FLOORS = (
    ("errors", "types", "host_memory", "compilations"),
    ("ops",),
    ("models",),
    ("sharding",),
    ("files", "checksums", "supervision", "preemption", "loggers"),
    ("mathematics", "optim"),
    ("rewards", "rl", "rollout"),
    ("data", "hf"),
    ("config",),
    ("runs", "sampler"),
    ("evaluation",),
    ("training",),
    ("sweep", "plan", "gpu_check", "report", "cli", "__main__"),
)
APART = ({"rl", "rollout"},)  # modules of a line that do not know each other
# What one platform wants otherwise lies in the modules of kernels and planning, and in files that say so.
EDGE = re.compile(r"(^|/)(ops|plan|gpu_check)/|(^|/)(cpu|platforms?|host_memory|multihost)\.py$")
PLATFORM_WORDS = re.compile(r"\bcpus?\b|\broomy\b|\bin_pieces\b|\bmalloc\b", re.IGNORECASE)
STORY = ("training/loop.py", "training/step.py", "training/update.py", "rl/update.py", "rl/gradients.py")


def main(_: list[str]) -> None:
    """Prints one table of figures and one of the widest functions."""
    package = Path(ROOT.value) / "polaris_jax"
    sources = {str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    trees = {name: ast.parse(text) for name, text in sources.items()}
    imports = {name: set(imported(tree, sources)) for name, tree in trees.items()}
    upwards = sorted(
        {
            (module_of(a), module_of(b))
            for a, found in imports.items()
            for b in found
            if runs_up(module_of(a), module_of(b))
        }
    )
    classes = Counter(n.name for t in trees.values() for n in ast.walk(t) if isinstance(n, ast.ClassDef))
    words = [f"{name}:{number}" for name, text in sources.items() if not EDGE.search(name)
             for number, line in enumerate(text.splitlines(), 1) if PLATFORM_WORDS.search(line)]  # fmt: skip
    path, story = to_the_gradient(imports, sources), [name for name in STORY if name in sources]
    table = Table("", "", "", title=str(package))
    table.add_row("files from config to gradient", str(len(path)), ", ".join(path))
    table.add_row("arrows that run back up", str(len(upwards)), ", ".join(f"{a} → {b}" for a, b in upwards))
    lines = {name: text.count("\n") for name, text in sources.items()}
    table.add_row("lines of loop, step, update", str(sum(lines[name] for name in story)), ", ".join(story))
    table.add_row("lines of the package", f"{sum(lines.values()):,}", "")
    table.add_row("modules over 300 lines", *listed([name for name, count in lines.items() if count > 300]))
    table.add_row("platform words on the main path", *listed(words))
    table.add_row("class names used twice", *listed([name for name, count in classes.items() if count > 1]))
    console = Console()
    console.print(table)
    functions = [(n, name) for name, t in trees.items() for n in ast.walk(t) if isinstance(n, ast.FunctionDef)]
    widest = sorted(((arguments(node), f"{name}: {node.name}") for node, name in functions), reverse=True)[:10]
    console.print(*(f"{count:3} arguments  {where}" for count, where in widest), sep="\n")


def imported(tree: ast.Module, sources: dict[str, str]) -> Iterator[str]:
    """The package's files that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polaris_jax"):
            base = node.module.removeprefix("polaris_jax").strip(".").replace(".", "/")
            for stem in (base, *(f"{base}/{alias.name}".strip("/") for alias in node.names)):
                if f"{stem}.py" in sources:
                    yield f"{stem}.py"


def module_of(name: str) -> str:
    """The module of a file: its directory, or its own name at the top."""
    return name.split("/")[0].removesuffix(".py")


def runs_up(importer: str, found: str) -> bool:
    """Whether an import goes to a higher floor, or between two modules that do not know each other."""
    if "__init__" in importer or importer == found:
        return False
    floors = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    return floors[found] > floors[importer] or {importer, found} in APART


def to_the_gradient(imports: dict[str, set[str]], sources: dict[str, str]) -> list[str]:
    """The files on any way of imports from the loop to the file that takes the gradient of the loss."""
    (end,) = (name for name, text in sources.items() if "jax.grad(" in text and module_of(name) in ("training", "rl"))

    def ahead(name: str) -> list[str]:
        return sorted(found for found in imports[name] if module_of(found) in ("training", "rl"))

    def reach(name: str, seen: frozenset[str] = frozenset()) -> bool:
        return name == end or any(reach(found, seen | {name}) for found in ahead(name) if found not in seen)

    known, open_ = [], ["training/loop.py"]
    while open_:
        name = open_.pop()
        if name not in known and reach(name):
            known.append(name)
            open_ += ahead(name)
    return known


def arguments(node: ast.FunctionDef) -> int:
    """How many arguments a function takes, self and cls apart."""
    a = node.args
    names = [argument.arg for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def listed(names: list[str]) -> tuple[str, str]:
    """How many, and the first few."""
    return str(len(names)), ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


if __name__ == "__main__":
    app.run(main)
