"""Lists the commands and what each does, or runs one: python -m polaris_jax [COMMAND --flag=value ...]"""

import ast
import difflib
import runpy
import sys
from pathlib import Path

import configs
from polaris_jax.errors import USER_ERROR

HERE = Path(__file__).resolve().parent
INSTALLED = HERE / "experiments"  # where a wheel has the scripts; a checkout has them beside the package
SCRIPTS = INSTALLED if INSTALLED.is_dir() else HERE.parent / "experiments"
OF_A_CHECKOUT = ("chaos", "demo", "demo_table", "docs_tables", "house")  # they read its files, or need torch


def commands() -> dict[str, Path]:
    """The scripts by their names."""
    found = {path.stem: path for path in sorted(SCRIPTS.glob("[!_]*.py"))}
    return {name: path for name, path in found.items() if SCRIPTS != INSTALLED or name not in OF_A_CHECKOUT}


def purpose(path: Path) -> str:
    """The first sentence of a script's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].removesuffix(".") + "."


def main(argv: list[str]) -> int:
    """Prints the list, or gives the rest of `argv` to a command. Returns the exit code."""
    found, (name, *rest) = commands(), argv or ["--help"]
    if name in found:
        sys.argv = [str(found[name]), *rest]
        runpy.run_path(str(found[name]), run_name="__main__")
        return 0
    if not name.startswith("-"):
        near = difflib.get_close_matches(name, found, n=1)
        meant = f"did you mean {near[0]}?" if near else "python -m polaris_jax lists all"
        print(f"error: {name}: no such command; {meant}", file=sys.stderr)
        return USER_ERROR
    print("python -m polaris_jax COMMAND --flag=value ...     (--help behind a command shows its flags)\n")
    for command, path in found.items():
        print(f"  {command:<14} {purpose(path)}")
    print(f"\nconfigs, for --config: {Path(configs.__file__).parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
