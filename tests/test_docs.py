"""The site of the documentation: built from the notebooks, the texts and the package, nothing
missing and nothing fetched."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.long
def test_the_site(tmp_path):
    command = [sys.executable, "tools/docs.py", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr  # a link that leads nowhere is an error
    index = (tmp_path / "searchindex.js").read_text().partition("(")[2].rpartition(")")[0]
    found = json.loads(index)
    assert "AutoLR" in json.dumps(found["objects"]) and "autolr" in found["terms"]
    assert "finetune" in (tmp_path / "api" / "runs.html").read_text()
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r'(?:src|href)="(https?:[^"]+)"', page.read_text())
        loaded = [url for url in fetched if url.endswith((".js", ".css"))]
        assert not loaded, f"{page.name} fetches {loaded[0]}"
