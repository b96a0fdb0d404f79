"""Keep the pictures of notebooks as small PNG outputs: python tools/pictures.py NOTEBOOK...

Runs each notebook in a fresh kernel and stores the output of only those cells that show a figure,
plotly's as PNG too (by kaleido, which needs a Chromium). A picture that is there already stays as
it is, so that nothing churns; --anew draws all of them again."""

import argparse
import base64
import io
import os
import subprocess
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PLOTLY = "application/vnd.plotly.v1+json"
LARGEST = 40_000  # bytes of one picture
SETUP = "import plotly.io\nplotly.io.renderers.default = 'plotly_mimetype'\n%matplotlib inline"


def drawn(figure):
    "A plotly figure, as its JSON dict, as PNG: 700 pixels wide, white below."
    import plotly.graph_objects as go

    fig = go.Figure(figure)
    fig.update_layout(paper_bgcolor="white", plot_bgcolor="white")
    return fig.to_image("png", width=700, height=int(fig.layout.height or 420))


def small(png):
    "The PNG in 64 colours, which halves it and can't be seen."
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(64).save(out, "png", optimize=True)
    return out.getvalue()


def picture(outputs):
    "What of a cell's outputs is a picture, as PNG; None if nothing is."
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            return base64.b64decode(data["image/png"])
        if PLOTLY in data:
            return drawn(data[PLOTLY])
    return None


def illustrate(path, anew=False):
    "Run the notebook at `path` and store its new pictures; returns their sizes in bytes."
    nb = nbformat.read(path, as_version=4)
    copy = nbformat.from_dict(nb)
    copy.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    NotebookClient(copy, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    sizes = []
    for cell, ran in zip(nb.cells, copy.cells[1:], strict=True):
        if cell.cell_type != "code" or (picture(cell.outputs) and not anew):
            continue
        image = picture(ran.outputs)
        if image is None:
            continue
        image = small(image)
        sizes.append(len(image))
        if sizes[-1] > LARGEST:
            raise SystemExit(
                f"{path.name}: a picture of {sizes[-1]} bytes; make it smaller:\n{cell.source}"
            )
        cell.outputs = [
            nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(image).decode()})
        ]
    nbformat.write(nb, path)
    return sizes


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--anew", action="store_true", help="also those that are there already")
    args = parser.parse_args()
    found = ["sh", str(ROOT / "tests" / "find_chromium.sh")]
    browser = subprocess.run(found, capture_output=True, text=True).stdout.strip()
    os.environ.setdefault("BROWSER_PATH", browser)
    os.environ["PYTHONPATH"] = str(ROOT)
    for path in args.notebooks:
        print(path, illustrate(path.resolve(), args.anew), flush=True)


if __name__ == "__main__":
    main()
