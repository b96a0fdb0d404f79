"""What CONTRIBUTING.md says can be done, done as it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", TEXT, flags=re.M | re.S))
PYTHON = re.compile(r"^```python\n(.*?)^```", flags=re.M | re.S)
ADDED = ["A method", "A data set", "A backbone", "An attack for the evaluation"]
ADDED += ["A parametrisation of the branch", "A plot", "A setting"]

AFTERWARDS = """
from autolora import cli, evaluate
from autolora.data import load_task
from autolora.methods import METHODS
from autolora.models import LowRankBranch, load_backbone
from autolora.show import PANELS
from autolora.runs.settings import SETTINGS

task = load_task("stripes")
model = load_backbone("two_convolutions", task.num_classes, channels=1)
LowRankBranch(model, parametrisation="shift")
report = evaluate(model, task.test, task.threat, ("none", "noise"), n=20)
assert "squared" in METHODS and "seconds" in PANELS and "patience" in SETTINGS
assert "--patience" in cli.VERBS["finetune"].parser("finetune").format_help()
cli.main(["list"])
"""


def run(code, folder, *path):
    "What `code` prints in a fresh interpreter, in `folder`, with `path` in front."
    (folder / "mine.py").write_text(code)
    path = os.pathsep.join(map(str, [*path, ROOT]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "mine.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_kind_of_thing_has_its_text():
    without = [name for name in [*ADDED, "A measurement"] if not PYTHON.search(SECTIONS[name])]
    assert not without


def test_what_it_says_works(tmp_path):
    blocks = [block for name in ADDED for block in PYTHON.findall(SECTIONS[name])]
    listed = run("\n\n".join([*blocks, AFTERWARDS]), tmp_path)
    for name in ("squared", "stripes", "two_convolutions", "shift"):
        assert re.search(rf"^ +{name} ", listed, flags=re.M), name


def test_a_measurement_works(tmp_path):
    (block,) = PYTHON.findall(SECTIONS["A measurement"])
    code = f"import sys\nsys.argv += ['--rounds', '1', '--results', {str(tmp_path / 'found')!r}]\n"
    run(block.replace('"""\n', f'"""\n{code}', 1), tmp_path, ROOT / "benchmarks")
    assert list((tmp_path / "found").glob("*.json"))


@pytest.mark.parametrize("group", ["methods", "tasks", "backbones", "attacks", "parametrisations"])
def test_entry_points_are_those_that_are_read(group):
    assert f'"autolora.{group}"' in SECTIONS["From another package"]
    rooms = (ROOT / "autolora").rglob("*.py")
    assert any(f'group="autolora.{group}"' in room.read_text() for room in rooms)


def test_the_example_package_is_the_one_shown():
    shown = re.search(r"^```toml\n(.*?)^```", SECTIONS["From another package"], flags=re.M | re.S)
    package = (ROOT / "tests" / "example_package" / "pyproject.toml").read_text()
    assert shown[1].strip() in package
