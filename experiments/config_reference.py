"""Makes docs/config.md, the reference of all config keys, from configs/base.py: each with its default and its comment.

python experiments/config_reference.py
python experiments/config_reference.py --reference=config.md
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from configs import base
from polaris_jax import cli

TARGET = flags.DEFINE_string("reference", "docs/config.md", "The page to write.")
INTRODUCTION = """# Config reference

<!-- Made by experiments/config_reference.py from configs/base.py; change those. -->

A config is a Python file with a `get_config()` that starts from `configs/base.py` and changes what it needs:

```python
from configs import base


def get_config():
    c = base.get_config()
    c.model.path = "Qwen/Qwen3-4B"
    c.rollout.samples = 16
    return c
```

Every script takes such a file as `--config=FILE`, and single values as `--config.KEY=VALUE`. A misspelt key and an
impossible value are refused in one line before anything is loaded. `stages` holds one dict of overrides for each stage;
its short keys are `name`, `steps`, `temperature` and `max_response_tokens`, all others are written in full, such as
`"data.train"`.
"""


def main(_: list[str]) -> None:
    """Writes the page."""
    Path(TARGET.value).write_text(page(Path(base.__file__).read_text(encoding="utf-8")), encoding="utf-8")


def page(source: str) -> str:
    """The reference in Markdown: a table for each section. Raises ValueError for a key without a comment."""
    tables: dict[str, list[str]] = {}
    for key, default, comment in keys(source):
        if not comment:
            raise ValueError(f"configs/base.py: {key} has no comment")
        row = f"| `{key}` | `{default}` | {comment} |"
        tables.setdefault(key.rpartition(".")[0], []).append(row.replace("\\|", "&#124;"))
    parts = [INTRODUCTION]
    for section, rows in tables.items():
        heading = f"## {section or 'The whole run'}\n\n| key | default | meaning |\n|---|---|---|"
        parts.append("\n".join([heading, *rows]) + "\n")
    return "\n".join(parts)


def keys(source: str) -> Iterator[tuple[str, str, str]]:
    """Name, default and comment of each key that the source sets: the comment behind it, or in the line above."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        key, default = ast.unparse(node.targets[0]).removeprefix("c."), ast.get_source_segment(source, node.value)
        if default == "ConfigDict()":
            continue
        behind = lines[node.end_lineno - 1][node.end_col_offset :]
        above = lines[node.lineno - 2].strip()
        yield key, default, (behind or above if "#" in behind or above.startswith("#") else "").strip(" #")


if __name__ == "__main__":
    cli.run(main)
