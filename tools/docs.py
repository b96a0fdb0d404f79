"""The site of the documentation: python tools/docs.py [FOLDER]

Lays out the notebooks, the texts and what is made from the package (its interface from signatures
and docstrings, tables of everything known by name) in _docs/pages, and has Sphinx make a site of
them in FOLDER (default: _docs/site). Nothing is fetched, neither now nor by who reads it. A link
of a notebook that leads nowhere ends it with an error; of a text, what isn't part of the site is
plain words."""

import importlib
import re
import shutil
import sys
from pathlib import Path
from posixpath import normpath

import nbformat
from readme import DIRECTIVE, shown
from sphinx.cmd.build import main as sphinx

from autolora.lab.playground import Playground
from autolora.runs.catalogue import known

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "_docs" / "pages"
FLOORS = ("data", "models", "robust", "train", "methods", "show", "runs", "lab", "core")
TEXTS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
TEXTS += ("benchmarks/results.md", "benchmarks/models.md", "benchmarks/faults.md")
PARTS = {
    "Learn": (
        "playground.md",
        "nbs/course/0*.ipynb",
        "nbs/course/glossary.ipynb",
        "nbs/00_tour.ipynb",
    ),
    "Teach": ("nbs/course/0*.md", "nbs/explanations/lecture.ipynb"),
    "Use": (
        "nbs/lab.ipynb",
        "nbs/colab.ipynb",
        "nbs/explanations/in_detail.ipynb",
        "nbs/explanations/handing_on.ipynb",
        "known.md",
    ),
    "Understand": ("nbs/explanations/where_we_differ.ipynb", "nbs/results/evidence.ipynb"),
    "Interface": ("api/autolora.md", *(f"api/{floor}.md" for floor in FLOORS)),
    "How it works inside": (*(f"nbs/{floor}/*.ipynb" for floor in FLOORS), "nbs/0[123]_*.ipynb"),
    "The project": TEXTS,
}


PLAYGROUND = """# Playground

Three small nets that are robust on the points of one task are fine-tuned on those of another: with
a natural objective that goes through a branch, with one that doesn't, and plainly. Press *Play*,
move eps, choose a point. It is the lab's own playground and trains here, in the page: nothing has
to be installed.

```{{raw}} html
<style>{style}</style>
<div id="nets" class="autolora-playground"></div>
<script type="module">
{module}
render({{ model: null, el: document.getElementById("nets") }});
</script>
```
"""


def cleaned(nb):
    "A notebook as README's reader would see it, without cells that are for nbdev alone."
    nb.cells = [cell for cell in nb.cells if shown(cell)]
    for cell in nb.cells:
        cell.source = DIRECTIVE.sub("", cell.source)
    nb.cells = [cell for cell in nb.cells if cell.source]
    return nb


def lay_out():
    "Copy notebooks and texts; links between them stay as they are."
    shutil.rmtree(PAGES, ignore_errors=True)
    for path in sorted((ROOT / "nbs").rglob("*")):
        target = PAGES / path.relative_to(ROOT)
        if path.is_dir() or ".ipynb_checkpoints" in path.parts or path.name == "index.ipynb":
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            nbformat.write(cleaned(nbformat.read(path, 4)), target)
        elif path.suffix in (".md", ".png", ".gif"):
            shutil.copy(path, target)
    for text in TEXTS:
        (PAGES / text).parent.mkdir(exist_ok=True)
        (PAGES / text).write_text(within((ROOT / text).read_text(), Path(text).parent))


def within(text, folder):
    "Markdown whose links to what isn't part of the site are plain words."

    def link(found):
        words, target = found.groups()
        page = normpath(f"{folder}/{target.partition('#')[0]}")
        return found[0] if page in TEXTS or (PAGES / page).exists() else words

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)\s]+)\)", link, text)


def interface():
    """A page of the interface for each folder of the package, and one of the package's top. What is
    met in two places is told in the first."""
    (PAGES / "api").mkdir()
    told = set()
    for floor in (*FLOORS, ""):
        name = f"autolora.{floor}".rstrip(".")
        module = importlib.import_module(name)
        lines = [f"# {name}", "", (module.__doc__ or "").strip(), ""]
        for member in module.__all__:
            thing = getattr(module, member)
            if not callable(thing):
                continue
            kind = "class" if isinstance(thing, type) else "function"
            place = f"{thing.__module__}.{thing.__name__}"
            if place in told:
                role = {"class": "class", "function": "func"}[kind]
                lines += [f"- {{py:{role}}}`{member} <{place}>`"]
                continue
            told.add(place)
            lines += ["```{eval-rst}", f".. auto{kind}:: {place}"]
            lines += ["   :members:"] * (kind == "class") + ["```", ""]
        (PAGES / "api" / f"{floor or 'autolora'}.md").write_text("\n".join(lines))


def tables():
    "A page of everything known by name."
    lines = ["# Everything known by name", "", "What `autolora list` tells.", ""]
    for title, things in known().items():
        lines += [f"## {title.capitalize()}", "", "| name | what it is |", "|---|---|"]
        lines += [
            f"| `{name}` | {what.replace('|', chr(92) + '|')} |" for name, what in things.items()
        ]
        lines.append("")
    (PAGES / "known.md").write_text("\n".join(lines))


def playground():
    "The page in which three small nets are trained."
    page = PLAYGROUND.format(style=Playground._css, module=Playground._esm)
    (PAGES / "playground.md").write_text(page)


def pages(patterns):
    "The pages that `patterns` name, without their endings."
    found = [path for pattern in patterns for path in sorted(PAGES.glob(pattern))]
    return [path.relative_to(PAGES).with_suffix("").as_posix() for path in found]


def front():
    "The first page: README, and where everything is; and llms.txt, the same for machines."
    text = (ROOT / "README.md").read_text().partition("-->")[2].lstrip()
    lines = [within(text, "."), ""]
    listed = ["# autolora", "", "> Robust fine-tuning of PyTorch models with nothing to set", ""]
    for title, patterns in PARTS.items():
        names = pages(patterns)
        lines += ["```{toctree}", f":caption: {title}", ":hidden:", "", *names, "```", ""]
        listed += [f"## {title}", "", *(f"- {name}.html" for name in names), ""]
    (PAGES / "index.md").write_text("\n".join(lines))
    (PAGES / "llms.txt").write_text("\n".join(listed))


def main(folder=ROOT / "_docs" / "site"):
    lay_out()
    interface()
    tables()
    playground()
    front()
    shutil.copy(ROOT / "docs" / "conf.py", PAGES)
    return sphinx(["-q", "-W", "--keep-going", str(PAGES), str(folder)])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
