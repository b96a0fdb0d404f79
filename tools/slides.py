"""Slides of the course's lessons: python tools/slides.py [FOLDER]

One page a lesson, with everything in it, so that no network is needed. A section (##) is a slide:
its heading, its key sentence (>), what is to be predicted, its exercises' first lines and the
pictures that are stored in the notebook. Arrow keys, space, a swipe or the wheel go on; printed,
each slide is a sheet."""

import re
import sys
from html import escape
from pathlib import Path

import nbformat
from nbconvert.filters import markdown2html

ROOT = Path(__file__).resolve().parent.parent
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
html {{ scroll-snap-type: y mandatory; font: 2.6vmin/1.4 system-ui, sans-serif;
  color-scheme: light dark; }}
body {{ margin: 0; }}
section {{ box-sizing: border-box; min-height: 100vh; padding: 5vmin 9vmin;
  scroll-snap-align: start; break-after: page;
  display: flex; flex-direction: column; justify-content: center; }}
h1 {{ font-size: 6vmin; line-height: 1.1; }}
h2 {{ font-size: 4.6vmin; margin: 0 0 2vmin; }}
blockquote {{ margin: 0 0 2vmin; padding-left: 2vmin; border-left: .8vmin solid #d55e00;
  font-size: 3.6vmin; }}
.guess {{ color: #0072b2; }}
.turn {{ font-family: ui-monospace, monospace; font-size: 2.2vmin; }}
img {{ background: white; max-width: 100%; height: 42vmin; object-fit: contain;
  object-position: left; }}
@media (prefers-color-scheme: dark) {{ .guess {{ color: #6cb6e8; }} }}
</style></head><body>
{slides}
<script>
const slides = [...document.querySelectorAll("section")];
const here = () => slides.findIndex(slide => slide.getBoundingClientRect().bottom > 9);
addEventListener("keydown", event => {{
  const forward = ["ArrowRight", "ArrowDown", "PageDown", " "].includes(event.key);
  const back = ["ArrowLeft", "ArrowUp", "PageUp"].includes(event.key);
  if (!forward && !back) return;
  event.preventDefault();
  slides[here() + (forward ? 1 : -1)]?.scrollIntoView();
}});
</script></body></html>
"""


def rendered(text):
    "Markdown as HTML; links to notebooks lead nowhere from a slide, so their words stay alone."
    html = markdown2html(re.sub(r"\[([^]]+)\]\([^)]+\.ipynb[^)]*\)", r"\1", text))
    return re.sub(r'<a class="anchor-link".*?</a>', "", html)


def parts(source):
    "Heading, key sentences and what is to be predicted, of the text of a cell, in its order."
    for block in re.split(r"\n{2,}", source):
        if block.startswith(("# ", "## ", "> ")):
            yield rendered(block)
        elif block.startswith("**Predict.**"):
            yield f'<div class="guess">{rendered(block)}</div>'


def slides_of(nb):
    "The HTML of each slide of a lesson."
    slides = []
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for text in re.split(r"(?m)^(?=##? )", cell.source):
                found = list(parts(text))
                if text.startswith("#"):
                    slides.append(found)
                elif slides:
                    slides[-1] += found
            continue
        if exercise := re.match(r"# (Exercise .*)", cell.source):
            slides[-1].append(f'<p class="turn">{escape(exercise[1])}</p>')
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                image = output.data["image/png"].strip()
                slides[-1].append(f'<img alt="" src="data:image/png;base64,{image}">')
    return ["\n".join(slide) for slide in slides if len(slide) > 1]


def slide_page(path):
    "The slides of the lesson at `path`, as one HTML page."
    nb = nbformat.read(path, as_version=4)
    title = nb.cells[0].source.splitlines()[0].strip("# ")
    sections = [f"<section>\n{slide}\n</section>" for slide in slides_of(nb)]
    return PAGE.format(title=escape(title), slides="\n".join(sections))


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_docs" / "slides"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "nbs" / "course").glob("[0-9]*.ipynb")):
        (folder / f"{path.stem}.html").write_text(slide_page(path), encoding="utf-8")
    print(folder)


if __name__ == "__main__":
    main()
