"""The site of the documentation: built from the notebooks, the texts and the package, nothing
missing and nothing fetched."""

import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

import autolora
from autolora.cli import VERBS
from autolora.runs.settings import SETTINGS

ROOT = Path(__file__).parent.parent
TEXTS = [*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md", *ROOT.glob("nbs/course/*.md")]
TEXTS += [p for p in ROOT.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in p.parts]


def blocks(language):
    "`(file, code)` of each block of code in a text, cells of notebooks' prose among them."
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = nbformat.reads(text, 4).cells
            text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for code in re.findall(rf"(?ms)^```{language}\n(.*?)^```", text):
            yield path.name, code


def test_commands_in_texts_have_these_options():
    found = 0
    for name, code in blocks("sh"):
        lines = [shlex.split(line, comments=True) for line in code.replace("\\\n", "").splitlines()]
        for words in lines:
            if words[:1] != ["autolora"] or words[1:2] in ([], ["--help"]):
                continue
            parser = VERBS[words[1]].parser(words[1])
            try:
                parser.parse_args(words[2:])
            except SystemExit:
                pytest.fail(f"{name}: {' '.join(words)}")
            found += 1
    assert found >= 7


def test_imports_and_settings_in_texts_are_there():
    found = 0
    for name, code in blocks("python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "autolora":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), f"{name}: {code}"
                found += 1
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in autolora.__all__:
                call = getattr(autolora, node.func.id)
                known = {*inspect.signature(call).parameters, *SETTINGS, "beta"}
                assert {k.arg for k in node.keywords} <= known, f"{name}: {ast.unparse(node)}"
                found += 1
    assert found >= 10


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "tools/docs.py", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr  # a link that leads nowhere is an error
    return folder


@pytest.mark.long
def test_the_site(site):
    index = (site / "searchindex.js").read_text().partition("(")[2].rpartition(")")[0]
    found = json.loads(index)
    assert "AutoLR" in json.dumps(found["objects"]) and "autolr" in found["terms"]
    assert "finetune" in (site / "api" / "runs.html").read_text()
    for page in site.rglob("*.html"):
        linked = re.findall(r'(?:src|href)="([^"#]+)', page.read_text())
        loaded = [url for url in linked if re.match(r"https?:.*\.(js|css)$", url)]
        assert not loaded, f"{page.name} fetches {loaded[0]}"
        near = [unquote(url.partition("?")[0]) for url in linked if not re.match(r"\w+:", url)]
        dead = [url for url in near if not (page.parent / url).exists()]
        assert not dead, f"{page.name} links to {dead[0]}, which isn't there"


@pytest.mark.long
def test_the_playground_trains_in_the_site(chromium, site):
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"file://{site}/playground.html")
        page.get_by_role("button", name="Step").click()
        expect(page.locator(".autolora-status")).to_contain_text("step 1, 72 points")
        browser.close()
