"""What mkdocs does beside rendering: pages that lie at the top of the checkout, and links to files outside of docs/."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
AT_THE_TOP = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!http|#)([^)#]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Reads a page from the top of the checkout where it lies there; names files that have no page instead of a link.

    Raises FileNotFoundError for a link to nothing.
    """
    name, folder = page.file.src_uri, ROOT / "docs"
    if name in AT_THE_TOP:
        folder, markdown = ROOT, (ROOT / AT_THE_TOP[name]).read_text(encoding="utf-8")

    def of_the_site(found: re.Match[str]) -> str:
        text, path, heading = found[1], (folder / found[2]).resolve(), found[3] or ""
        if not path.exists():
            raise FileNotFoundError(f"{name}: links to {found[2]}, which is not there")
        if path.parent == ROOT / "docs":
            return f"[{text}]({path.name}{heading})"
        return text

    return LINK.sub(of_the_site, markdown).replace("](docs/", "](")  # what is left are pictures
