"""Every notebook runs from top to bottom, each in a process of its own; the course's lessons do so
in test_course.py, with their exercises."""

import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch
from nbdev.test import test_nb as run_nb

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(
    path
    for path in (ROOT / "nbs").rglob("*.ipynb")
    if ".ipynb_checkpoints" not in path.parts
    and not (path.parent.name == "course" and path.name[0].isdigit())
)
TIMEOUT = 600  # seconds; a notebook should need less than 30 of them on two idle cores

# The fork server imports what most of them need once, and hands each notebook a fresh copy of
# itself; macOS can't fork safely after such imports.
PROCESSES = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    PROCESSES.set_forkserver_preload(
        [
            "torch",
            "nbdev.test",
            "nbdev.showdoc",
            "autolora.lab.panel",
            "autolora.lab.front",
            "autolora.runs.tuning",
            "autolora.cli",
        ]
    )


def run(path, log):
    """Execute the notebook at `path`; whatever is printed goes to `log`.

    Exit status: 0 passed, 1 failed, 2 nothing was executed."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ |= {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    passed, seconds = run_nb(path, basepath=ROOT)
    sys.exit(1 if not passed else 0 if seconds else 2)


def outcome(path, log):
    "What is wrong with the notebook at `path`, or None."
    process = PROCESSES.Process(target=run, args=(path, log))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        return f"{path.name} did not end within {TIMEOUT} s"
    if process.exitcode == 2:
        return f"{path.name} says skip_exec, so nothing of it is tested"
    if process.exitcode:
        return f"{path.name}\n{log.read_text(errors='replace')[-6000:]}"
    return None


@pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=[str(path.relative_to(ROOT / "nbs")) for path in NOTEBOOKS]
)
def test_notebook(path, tmp_path):
    assert (wrong := outcome(path, tmp_path / "log")) is None, wrong
