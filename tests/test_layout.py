"""What the rooms promise about themselves: exported, clean, layered, lazy, small (the house rules
of CONTRIBUTING.md)."""

import ast
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fastcore.nbio import nb2str
from nbdev.clean import clean_nb

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from readme import readme  # noqa: E402

NOTEBOOKS = sorted(
    path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
ROOMS = [path for path in NOTEBOOKS if path.parent.name == "nbs" and path.name[0].isdigit()]
MODULES = sorted(
    path
    for path in (ROOT / "autolora").glob("*.py")
    if path.name not in ("_modidx.py", "__main__.py")
)
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|work|tmp|Users|mnt|opt)/\w+")

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
modules = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)


def python(code):
    "What `code` prints in a fresh interpreter."
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def code_cells(path):
    "The sources of a notebook's code cells, without magics, which are no Python."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        "".join(line for line in cell["source"] if line[0] not in "%!")
        for cell in cells
        if cell["cell_type"] == "code"
    ]


@functools.cache
def exports():
    "Which module exports each public name."
    found = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.Assign)
                and getattr(node.targets[0], "id", "") == "__all__"
                and path.stem != "__init__"
            ):
                found |= dict.fromkeys(ast.literal_eval(node.value), path.stem)
    return found


def imported_rooms(source):
    """The modules of ours that `source` imports from; a name taken from the package counts as its
    module."""
    where = exports()
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in getattr(node, "names", [])]
        if isinstance(node, ast.Import):
            yield from (name.split(".")[1] for name in names if name.startswith("autolora."))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autolora."):
            yield node.module.split(".")[1]
        if isinstance(node, ast.ImportFrom) and node.module == "autolora":
            yield from (where.get(name, name) for name in names)


def test_export_leaves_no_diff(tmp_path):
    for name in ("pyproject.toml", "settings.ini", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    (tmp_path / "autolora").mkdir()
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(
            ROOT / "autolora" / name, tmp_path / "autolora"
        )  # the two that come from no notebook
    subprocess.run(
        [Path(sys.executable).parent / "nbdev-export"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    read = lambda root: {
        path.name: path.read_text(encoding="utf-8") for path in (root / "autolora").glob("*.py")
    }
    fresh, committed = read(tmp_path), read(ROOT)
    assert sorted(fresh) == sorted(committed), (
        "run make export; a module without a notebook has to go"
    )
    stale = [name for name in fresh if fresh[name] != committed[name]]
    assert not stale, f"run make export: {stale} differ from their notebooks"


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.name)
def test_rooms_import_only_from_lower_numbers(path):
    order = {room.stem.split("_", 1)[1]: room.stem for room in ROOMS}
    used = {room for source in code_cells(path) for room in imported_rooms(source) if room in order}
    assert not [room for room in used if order[room] > path.stem]


@notebooks
def test_notebook_is_clean(path):
    text = path.read_text(encoding="utf-8")
    nb = json.loads(text)
    assert path.stat().st_size < 200_000
    assert "widgets" not in nb["metadata"]
    shown = [output for cell in nb["cells"] for output in cell.get("outputs", [])]
    assert not [o for o in shown if o["output_type"] == "error"]
    assert not [
        kind for o in shown for kind in o.get("data", {}) if "plotly" in kind or "widget" in kind
    ]
    assert not MACHINE_PATH.findall(text)
    clean_nb(nb)
    assert nb2str(nb) == text, "run make export"


@pytest.mark.parametrize("path", MODULES + PROSE, ids=lambda path: path.name)
def test_text_names_no_machine_path(path):
    assert not MACHINE_PATH.findall(path.read_text(encoding="utf-8"))


def test_readme_is_up_to_date():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(), "run make readme"


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert not [link for link in links if not (ROOT / link).exists()]


def test_import_touches_neither_widgets_nor_gpu():
    code = (
        "import sys, autolora; print([m for m in ('ipywidgets', 'plotly', 'anywidget') if m in "
        "sys.modules]); import torch; print(torch.cuda.is_initialized())"
    )
    assert python(code).split("\n") == ["[]", "False"]


@pytest.mark.parametrize(
    "module",
    ["schedule", "history", "reports", "drawing", "plots", "gallery", "pages", "views", "painter"],
)
def test_torch_free(module):
    assert python(f"import sys, autolora.{module}; print('torch' in sys.modules)") == "False"


def test_widgets_stay_in_the_lab():
    above = {"canvas", "controls", "board", "lab", "cli"}
    code = (
        "import sys, importlib; [importlib.import_module('autolora.' + m) for m in {}]; "
        "print('ipywidgets' in sys.modules)"
    )
    assert (
        python(
            code.format([path.stem for path in MODULES if path.stem not in above | {"__init__"}])
        )
        == "False"
    )


def definitions(path):
    "The functions of a module, methods included."
    return [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def length(function):
    "Lines of a function without its docstring."
    total = function.end_lineno - function.lineno + 1
    first = function.body[0]
    return total - (first.end_lineno - first.lineno + 1) * (ast.get_docstring(function) is not None)


@modules
def test_functions_are_small(path):
    assert not [f"{f.name}: {length(f)} lines" for f in definitions(path) if length(f) > 40]


@modules
def test_library_does_not_print(path):
    if path.stem == "cli":
        return  # the one room whose job that is
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert not [call.lineno for call in calls if getattr(call.func, "id", "") == "print"]


def test_no_module_is_named_like_an_export():
    assert not {path.stem for path in MODULES} & set(exports())


def test_version_stands_in_one_place():
    version = re.search(r'__version__ = "(.+)"', (ROOT / "autolora" / "__init__.py").read_text())[1]
    for name in ("settings.ini", "setup.py", "pyproject.toml"):
        assert version not in (ROOT / name).read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_ruff():
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format=concise", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout
