"""Write README.md from nbs/index.ipynb (without Quarto, which nbdev-readme would need).

Cells marked `#| hide` stay out, directive lines are dropped, and links are rewritten to start at
the repository's root."""

import re
from pathlib import Path
from posixpath import normpath

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVE = re.compile(r"^#\|.*\n?", re.M)
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s]+)")


def shown(cell):
    "Whether a reader of the README sees this cell."
    return (
        cell.cell_type == "markdown"
        or cell.cell_type == "code"
        and not re.match(r"#\| *hide\b", cell.source)
    )


def readme(notebook=ROOT / "nbs" / "index.ipynb"):
    "The README's text."
    nb = nbformat.read(notebook, as_version=4)
    nb.cells = [cell for cell in nb.cells if shown(cell)]
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.source = DIRECTIVE.sub("", cell.source)
    nb.metadata["language_info"] = {"name": "python"}
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = LINK.sub(lambda match: match[1] + normpath(f"nbs/{match[2]}"), text)
    return (
        "<!-- Written from nbs/index.ipynb by `make readme`: edit that. -->\n\n"
        + re.sub(r"\n{3,}", "\n\n", text).strip()
        + "\n"
    )


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
